"""A small price list in the published form, made up, with everything that the form can say."""

from __future__ import annotations

import json
from typing import Any

PROVIDERS: list[dict[str, Any]] = [
    {
        "id": "acme",
        "name": "Acme",
        "api_pattern": "https://api\\.acme\\.example",
        "model_match": {"or": [{"starts_with": "Bolt-"}, {"regex": "^o[134]"}]},
        "provider_match": {"and": [{"contains": "acme"}, {"ends_with": "ai"}]},
        "fallback_model_providers": ["other"],
        "models": [
            {
                "id": "bolt-1",
                "match": {"or": [{"equals": "bolt-1"}, {"starts_with": "bolt-1-20"}]},
                "context_window": 200000,
                "prices": {
                    "input_mtok": 3,
                    "cache_read_mtok": 0.3,
                    "cache_write_mtok": 3.75,
                    "output_mtok": 15,
                    "requests_kcount": 12,
                },
            },
            {
                "id": "bolt-long",
                "match": {"starts_with": "bolt-long"},
                "prices": {
                    "input_mtok": {
                        "base": 1.25,
                        "tiers": [{"start": 200000, "price": 2.5}],
                    },
                    "output_mtok": {"base": 10, "tiers": [{"start": 200000, "price": 15}]},
                },
            },
            {
                "id": "bolt-night",
                "match": {"equals": "bolt-night"},
                "prices": [
                    {
                        "prices": {
                            "input_mtok": 0.135,
                            "cache_read_mtok": 0.035,
                            "output_mtok": 0.55,
                        }
                    },
                    {
                        "constraint": {"start_time": "00:30:00Z", "end_time": "16:30:00Z"},
                        "prices": {"input_mtok": 0.27, "output_mtok": 1.1},
                    },
                ],
            },
            {
                "id": "bolt-cheaper",
                "match": {"equals": "bolt-cheaper"},
                "prices": [
                    {"prices": {"input_mtok": 10, "output_mtok": 40}},
                    {
                        "constraint": {"start_date": "2025-06-10"},
                        "prices": {"input_mtok": 2, "output_mtok": 8},
                    },
                ],
            },
            {
                "id": "bolt-sound",
                "match": {"equals": "bolt-sound"},
                "prices": {
                    "input_mtok": 0.6,
                    "cache_read_mtok": 0.3,
                    "output_mtok": 2.4,
                    "input_audio_mtok": 10,
                    "cache_audio_read_mtok": 0.25,
                    "output_audio_mtok": 20,
                },
            },
            {
                "id": "bolt-embed",
                "match": {"equals": "bolt-embed"},
                "prices": {"input_mtok": 0.08333333333333334},
            },
            # The list knows it and has no price for it.
            {"id": "nutcracker", "match": {"equals": "nutcracker"}, "prices": {}},
        ],
    },
    {
        "id": "other",
        "name": "Other",
        "api_pattern": "x",
        "model_match": {"contains": "nut"},
        "models": [
            {
                "id": "nut",
                "match": {"contains": "nut"},
                "prices": {"input_mtok": 1, "output_mtok": 2},
            },
        ],
    },
]

FULL: dict[str, Any] = {
    "units": {},
    "providers": [
        {
            "id": "acme",
            "name": "Acme",
            "description": "Makes bolts.",
            "api_pattern": "x",
            "models": [
                {
                    "id": "bolt-2",
                    "name": "Bolt 2",
                    "match": {"equals": "bolt-2"},
                    "prices": {
                        "input_mtok": "5",
                        "cache_write_mtok": "6.25",
                        "cache_write_1h_mtok": "10",
                        "output_mtok": "25",
                        "output_reasoning_mtok": "30",
                        "web_searches_kcount": "10",
                        "audio_hours": "0.04",
                        "input_mchars": "15",
                    },
                    "price_variants": [
                        {
                            "when": {"processing": "batch"},
                            "prices": {"input_mtok": "2.5", "output_mtok": "12.5"},
                        },
                        {"when": {"region": "moon"}, "prices": {"input_mtok": "6"}},
                        {"when": {"service_tier": "default"}, "prices": {}},
                    ],
                },
                {
                    "id": "bolt-peaks",
                    "match": {"equals": "bolt-peaks"},
                    "prices": [
                        {"prices": {"input_mtok": "1", "output_mtok": "1"}},
                        {
                            "constraint": {"start_date": "2026-08-17"},
                            "prices": {"input_mtok": "2", "output_mtok": "2"},
                        },
                        {
                            "constraint": {
                                "start_time": "01:00:00+00:00",
                                "end_time": "04:00:00+00:00",
                            },
                            "prices": {"input_mtok": "3", "output_mtok": "3"},
                        },
                        {
                            "constraint": {
                                "start_time": "22:00:00+00:00",
                                "end_time": "02:00:00+00:00",
                            },
                            "prices": {"input_mtok": "4", "output_mtok": "4"},
                        },
                    ],
                },
            ],
        }
    ],
}


def slim_file() -> bytes:
    return json.dumps(PROVIDERS).encode()


def full_file() -> bytes:
    return json.dumps(FULL).encode()
