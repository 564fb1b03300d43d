"""What each dialect's objects read as, and what is refused under which field's name."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.pricing.readers.dialect_objects import vector

from pricing.domain.events import MAX_QUANTITY
from pricing.domain.readers import dialects, reading
from pricing.domain.readers.reading import UsageReadError

CHAT = "openai_chat"
RESPONSES = "openai_responses"

READ: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    (CHAT, {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}, {"in": 9, "out": 12}),
    # Embeddings have no completion.
    (CHAT, {"prompt_tokens": 8, "total_tokens": 8}, {"in": 8}),
    (CHAT, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {}),
    (
        CHAT,
        {
            "prompt_tokens": 100,
            "completion_tokens": 60,
            "total_tokens": 160,
            "prompt_tokens_details": {"cached_tokens": 30, "audio_tokens": 40, "image_tokens": 20},
            "completion_tokens_details": {
                "reasoning_tokens": 10,
                "audio_tokens": 20,
                "accepted_prediction_tokens": 5,
                "rejected_prediction_tokens": 7,
            },
        },
        # 100 - 40 - 20 = 40 of text, of which 30 were cached.
        {
            "in": 10,
            "in.read": 30,
            "in.audio": 40,
            "in.image": 20,
            "out": 18,
            "out.reasoning": 10,
            "out.audio": 20,
            "out.prediction_accepted": 5,
            "out.prediction_rejected": 7,
        },
    ),
    # DeepSeek's.
    (
        CHAT,
        {
            "prompt_tokens": 100,
            "completion_tokens": 5,
            "total_tokens": 105,
            "prompt_tokens_details": {"cached_tokens": 64},
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
        },
        {"in": 36, "in.read": 64, "out": 5},
    ),
    (
        CHAT,
        {"prompt_tokens": 10, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 6},
        {"in": 6, "in.read": 4},
    ),
    # More cached than there is text: the rest must have been images, then audio.
    (
        CHAT,
        {
            "prompt_tokens": 100,
            "completion_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": 85, "audio_tokens": 30, "image_tokens": 50},
        },
        {"in.read": 20, "in.image.read": 50, "in.audio.read": 15, "in.audio": 15},
    ),
    (
        RESPONSES,
        {
            "input_tokens": 75,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 1186,
            "output_tokens_details": {"reasoning_tokens": 1024},
            "total_tokens": 1261,
        },
        {"in": 75, "out": 162, "out.reasoning": 1024},
    ),
    (
        RESPONSES,
        {
            "input_tokens": 1000,
            "input_tokens_details": {
                "cached_tokens": 100,
                "cache_write_tokens": 500,
                "cache_write_tokens_details": {"ttl_30m_tokens": 200, "ttl_12h_tokens": 50},
            },
            "output_tokens": 5,
        },
        {
            "in": 400,
            "in.read": 100,
            "in.write": 250,
            "in.write.custom.30m": 200,
            "in.write.custom.12h": 50,
            "out": 5,
        },
    ),
    # Realtime: the cache is split by kind.
    (
        RESPONSES,
        {
            "total_tokens": 253,
            "input_tokens": 132,
            "output_tokens": 121,
            "input_token_details": {
                "text_tokens": 119,
                "audio_tokens": 13,
                "image_tokens": 0,
                "cached_tokens": 64,
                "cached_tokens_details": {"text_tokens": 60, "audio_tokens": 4, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
        },
        {"in": 59, "in.read": 60, "in.audio": 9, "in.audio.read": 4, "out": 30, "out.audio": 91},
    ),
    # Images.
    (
        RESPONSES,
        {
            "total_tokens": 100,
            "input_tokens": 50,
            "output_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens_details": {"text_tokens": 0, "image_tokens": 50},
        },
        {"in": 10, "in.image": 40, "out.image": 50},
    ),
    (
        RESPONSES,
        {
            "type": "tokens",
            "input_tokens": 14,
            "input_token_details": {"text_tokens": 10, "audio_tokens": 4},
            "output_tokens": 101,
            "total_tokens": 115,
        },
        {"in": 10, "in.audio": 4, "out": 101},
    ),
    (
        "anthropic",
        {
            "input_tokens": 2048,
            "cache_read_input_tokens": 1800,
            "cache_creation_input_tokens": 248,
            "output_tokens": 503,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 148,
                "ephemeral_1h_input_tokens": 100,
            },
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
            "service_tier": "standard",
            "inference_geo": "us",
        },
        {
            "in": 2048,
            "in.read": 1800,
            "in.write.5m": 148,
            "in.write.1h": 100,
            "out": 503,
            "tool_call.web_search": 2,
            "tool_call.web_fetch": 1,
        },
    ),
    # A split without its total is the total.
    (
        "anthropic",
        {
            "input_tokens": 1,
            "output_tokens": 2,
            "cache_creation": {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 0},
        },
        {"in": 1, "in.write.5m": 7, "out": 2},
    ),
    # A compaction's tokens are not in the figures above it; a message's are.
    (
        "anthropic",
        {
            "input_tokens": 23000,
            "output_tokens": 1000,
            "iterations": [
                {
                    "type": "compaction",
                    "input_tokens": 180000,
                    "output_tokens": 3500,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                },
                {"type": "message", "input_tokens": 23000, "output_tokens": 1000},
            ],
        },
        {"in": 203000, "out": 4500},
    ),
    (
        "gemini",
        {
            "promptTokenCount": 700,
            "cachedContentTokenCount": 600,
            "candidatesTokenCount": 50,
            "toolUsePromptTokenCount": 30,
            "thoughtsTokenCount": 20,
            "totalTokenCount": 800,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 100},
                {"modality": "VIDEO", "tokenCount": 500},
                {"modality": "AUDIO", "tokenCount": 100},
            ],
            "cacheTokensDetails": [
                {"modality": "VIDEO", "tokenCount": 500},
                {"modality": "AUDIO", "tokenCount": 100},
            ],
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 50}],
            "trafficType": "ON_DEMAND",
        },
        {
            "in": 100,
            "in.video.read": 500,
            "in.audio.read": 100,
            "in.tool": 30,
            "out.image": 50,
            "out.reasoning": 20,
        },
    ),
    # The Python client's names, and Live's.
    (
        "gemini",
        {
            "prompt_token_count": 10,
            "response_token_count": 4,
            "total_token_count": 14,
            "prompt_tokens_details": [{"modality": "AUDIO", "token_count": 10}],
            "cached_content_token_count": None,
        },
        {"in.audio": 10, "out": 4},
    ),
    (
        "vllm",
        {
            "prompt_tokens": 640,
            "total_tokens": 700,
            "completion_tokens": 60,
            "prompt_tokens_details": {
                "cached_tokens": 512,
                "created_cache_tokens": 96,
                "multimodal_tokens": {"image": 64},
            },
        },
        # 576 of text, of which 512 were cached; of the written ones 64 are text.
        {"in.read": 512, "in.write": 64, "in.image.write": 32, "in.image": 32, "out": 60},
    ),
    ("vllm", {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": None}, {"in": 5}),
    (
        "tollbook",
        {
            "quantities": [
                {"unit": "UNIT_REQUEST", "amount": 1},
                {"unit": "token", "direction": 2, "amount": "7", "undeliveredAmount": "3"},
                {"unit": "UNIT_GPU_MS", "attribute": "h100", "amount": 1500},
                {"unit": "token", "direction": "in", "amount": 0},
            ]
        },
        {"request": 1, "out": 7, "gpu_ms.h100": 1500},
    ),
]


@pytest.mark.parametrize(("dialect", "usage", "expected"), READ)
def test_reads_as(dialect: str, usage: dict[str, Any], expected: dict[str, int]) -> None:
    assert vector(dialects.named(dialect).read(usage)) == expected


@pytest.mark.parametrize(("dialect", "usage"), [(case[0], case[1]) for case in READ])
def test_found_by_its_fields_it_reads_the_same(dialect: str, usage: dict[str, Any]) -> None:
    assert dialects.detected(usage).read(usage) == dialects.named(dialect).read(usage)


REFUSED: list[tuple[str, object, str, str]] = [
    (
        CHAT,
        {"prompt_tokens": 10, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 7},
        "prompt_cache_miss_tokens",
        reading.INCONSISTENT,
    ),
    (
        CHAT,
        {
            "prompt_tokens": 10,
            "prompt_cache_hit_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 5},
        },
        "prompt_cache_hit_tokens",
        reading.INCONSISTENT,
    ),
    (
        CHAT,
        {"prompt_tokens": 10, "prompt_cache_hit_tokens": 11},
        "prompt_cache_hit_tokens",
        reading.NEGATIVE_LEAF,
    ),
    (CHAT, [], "", reading.NOT_READABLE),
    (CHAT, {"completion_tokens": 1}, "prompt_tokens", reading.MISSING_FIELD),
    (CHAT, {"prompt_tokens": 1, "prompt_cost": 3}, "prompt_cost", reading.UNKNOWN_FIELD),
    (CHAT, {"prompt_tokens": 1.0}, "prompt_tokens", reading.NOT_READABLE),
    (CHAT, {"prompt_tokens": True}, "prompt_tokens", reading.NOT_READABLE),
    (CHAT, {"prompt_tokens": "1"}, "prompt_tokens", reading.NOT_READABLE),
    (CHAT, {"prompt_tokens": float("nan")}, "prompt_tokens", reading.NOT_READABLE),
    (CHAT, {"prompt_tokens": -1}, "prompt_tokens", reading.OUT_OF_RANGE),
    (CHAT, {"prompt_tokens": MAX_QUANTITY + 1}, "prompt_tokens", reading.OUT_OF_RANGE),
    (CHAT, {"prompt_tokens": 10**5000}, "prompt_tokens", reading.OUT_OF_RANGE),
    (
        CHAT,
        {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 8},
        "total_tokens",
        reading.INCONSISTENT,
    ),
    (
        CHAT,
        {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}},
        "prompt_tokens_details.cached_tokens",
        reading.NEGATIVE_LEAF,
    ),
    (
        CHAT,
        {"prompt_tokens": 3, "prompt_tokens_details": {"audio_tokens": 2, "image_tokens": 2}},
        "prompt_tokens_details.audio_tokens",
        reading.NEGATIVE_LEAF,
    ),
    (
        CHAT,
        {
            "prompt_tokens": 3,
            "completion_tokens": 5,
            "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 2},
        },
        "completion_tokens_details.reasoning_tokens",
        reading.NEGATIVE_LEAF,
    ),
    (
        CHAT,
        {"prompt_tokens": 3, "prompt_tokens_details": {"saved_tokens": 1}},
        "prompt_tokens_details.saved_tokens",
        reading.UNKNOWN_FIELD,
    ),
    (
        CHAT,
        {"prompt_tokens": 3, "prompt_tokens_details": [1]},
        "prompt_tokens_details",
        reading.NOT_READABLE,
    ),
    (RESPONSES, {"input_tokens": 3}, "output_tokens", reading.MISSING_FIELD),
    (
        RESPONSES,
        {"type": "duration", "input_tokens": 3, "output_tokens": 1},
        "type",
        reading.NOT_READABLE,
    ),
    (
        RESPONSES,
        {
            "input_tokens": 3,
            "output_tokens": 1,
            "input_tokens_details": {},
            "input_token_details": {},
        },
        "input_token_details",
        reading.INCONSISTENT,
    ),
    (
        RESPONSES,
        {"input_tokens": 3, "output_tokens": 1, "output_tokens_details": {"reasoning_tokens": 2}},
        "output_tokens_details.reasoning_tokens",
        reading.NEGATIVE_LEAF,
    ),
    (
        RESPONSES,
        {
            "input_tokens": 100,
            "output_tokens": 1,
            "input_tokens_details": {
                "audio_tokens": 10,
                "cached_tokens": 30,
                "cached_tokens_details": {"audio_tokens": 20},
            },
        },
        "input_tokens_details.cached_tokens_details.audio_tokens",
        reading.NEGATIVE_LEAF,
    ),
    (
        RESPONSES,
        {
            "input_tokens": 100,
            "output_tokens": 1,
            "input_tokens_details": {
                "cache_write_tokens": 30,
                "cache_write_tokens_details": {"ttl_30m_tokens": 20, "ttl_12h_tokens": 20},
            },
        },
        "input_tokens_details.cache_write_tokens_details.ttl_12h_tokens",
        reading.NEGATIVE_LEAF,
    ),
    ("anthropic", {"input_tokens": 3}, "output_tokens", reading.MISSING_FIELD),
    (
        "anthropic",
        {
            "input_tokens": 3,
            "output_tokens": 3,
            "cache_creation_input_tokens": 10,
            "cache_creation": {"ephemeral_5m_input_tokens": 8, "ephemeral_1h_input_tokens": 3},
        },
        "cache_creation.ephemeral_1h_input_tokens",
        reading.NEGATIVE_LEAF,
    ),
    (
        "anthropic",
        {"input_tokens": 3, "output_tokens": 3, "service_tier": "turbo"},
        "service_tier",
        reading.NOT_READABLE,
    ),
    (
        "anthropic",
        {"input_tokens": 3, "output_tokens": 3, "service_tier": "batch", "speed": "fast"},
        "speed",
        reading.INCONSISTENT,
    ),
    (
        "anthropic",
        {"input_tokens": 3, "output_tokens": 3, "output_tokens_details": {"thinking_tokens": 4}},
        "output_tokens_details.thinking_tokens",
        reading.NEGATIVE_LEAF,
    ),
    (
        "anthropic",
        {
            "input_tokens": 3,
            "output_tokens": 3,
            "iterations": [{"type": "advisor_message", "input_tokens": 1, "output_tokens": 1}],
        },
        "iterations[0].type",
        reading.NOT_READABLE,
    ),
    (
        "gemini",
        {"promptTokenCount": 5, "totalTokenCount": 4},
        "totalTokenCount",
        reading.INCONSISTENT,
    ),
    (
        "gemini",
        {
            "promptTokenCount": 5,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 4},
                {"modality": "IMAGE", "tokenCount": 2},
            ],
        },
        "promptTokensDetails[1].tokenCount",
        reading.NEGATIVE_LEAF,
    ),
    (
        "gemini",
        {"promptTokenCount": 5, "promptTokensDetails": [{"modality": "SMELL", "tokenCount": 4}]},
        "promptTokensDetails[0].modality",
        reading.NOT_READABLE,
    ),
    (
        "gemini",
        {"promptTokenCount": 5, "trafficType": "ON_A_WHIM"},
        "trafficType",
        reading.NOT_READABLE,
    ),
    (
        "gemini",
        {"promptTokenCount": 5, "prompt_token_count": 5},
        "",
        reading.INCONSISTENT,
    ),
    (
        "vllm",
        {"prompt_tokens": 5, "prompt_tokens_details": {"multimodal_tokens": {"smell": 1}}},
        "prompt_tokens_details.multimodal_tokens.smell",
        reading.UNKNOWN_FIELD,
    ),
    (
        "vllm",
        {
            "prompt_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 3, "created_cache_tokens": 3},
        },
        "prompt_tokens_details.created_cache_tokens",
        reading.NEGATIVE_LEAF,
    ),
    ("tollbook", {"quantities": {}}, "quantities", reading.NOT_READABLE),
    (
        "tollbook",
        {"quantities": [{"unit": "token", "amount": 1, "undelivered_amount": 2}]},
        "quantities[0].undelivered_amount",
        reading.NEGATIVE_LEAF,
    ),
    (
        "tollbook",
        {"quantities": [{"unit": "token", "amount": 1}, {"unit": "UNIT_TOKEN", "amount": 2}]},
        "quantities[1]",
        reading.INCONSISTENT,
    ),
    (
        "tollbook",
        {"quantities": [{"unit": "token", "amount": "9" * 31}]},
        "quantities[0].amount",
        reading.NOT_READABLE,
    ),
    (
        "tollbook",
        {"quantities": [{"unit": "parsec", "amount": 1}]},
        "quantities[0].unit",
        reading.NOT_READABLE,
    ),
    ("tollbook", {"quantities": [{"amount": 1}]}, "quantities[0].unit", reading.MISSING_FIELD),
]


@pytest.mark.parametrize(("dialect", "usage", "field", "reason"), REFUSED)
def test_refused_by_name(dialect: str, usage: object, field: str, reason: str) -> None:
    with pytest.raises(UsageReadError) as caught:
        dialects.named(dialect).read(usage)
    assert (caught.value.field, caught.value.reason) == (field, reason)
    assert field in str(caught.value)


def test_a_tier_and_a_region_are_read_where_the_object_says_them() -> None:
    anthropic = dialects.named("anthropic").read
    usage = {"input_tokens": 1, "output_tokens": 1}
    assert anthropic(usage | {"service_tier": "priority"}).service_tier == "priority"
    assert anthropic(usage | {"service_tier": "standard", "speed": "fast"}).service_tier == "fast"
    assert anthropic(usage | {"inference_geo": "us"}).region == "us"
    assert anthropic(usage | {"inference_geo": "not_available"}).region == ""
    gemini = dialects.named("gemini").read({"promptTokenCount": 1, "trafficType": "ON_DEMAND_FLEX"})
    assert gemini.service_tier == "flex"


def test_no_dialect_is_named_with_what_is_there() -> None:
    with pytest.raises(UsageReadError, match="none of prompt_tokens, input_tokens"):
        dialects.detected({"tokens": 4})
    with pytest.raises(UsageReadError, match="there are openai_chat"):
        dialects.named("cobol")
