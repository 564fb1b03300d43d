"""Every published model, rated by us and by genai-prices: the same, but for what is listed here.

Two hands that know nothing of each other reckon the same prices for the same
usage. Theirs is the Decimal arithmetic of the pinned package over the same file;
ours is the imported cards, through the offline rater.
"""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from genai_prices import types as theirs

from pricing.domain.card_yaml import parse_card
from pricing.domain.imports.genai_cards import import_prices
from pricing.domain.imports.price_file import read_price_file
from pricing.domain.offline import OfflineRater, RatedLine
from pricing.domain.readers.usage_line import read_line

PUBLISHED = Path(__file__).resolve().parents[5] / "shared" / "data" / "genai_prices_slim.json.gz"

pytestmark = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="the published price list is not here"
)


class Sample(NamedTuple):
    """A request: disjoint counts of its leaves."""

    plain: int
    read: int = 0
    write: int = 0
    audio: int = 0
    audio_read: int = 0
    output: int = 0
    audio_output: int = 0

    @property
    def input(self) -> int:
        return self.plain + self.read + self.write + self.audio + self.audio_read

    def quantities(self) -> list[dict[str, Any]]:
        def leaf(amount: int, direction: str, **more: str) -> dict[str, Any]:
            return {"unit": "token", "direction": direction, "amount": amount, **more}

        return [
            leaf(self.plain, "in"),
            leaf(self.read, "in", cache_use="read"),
            leaf(self.write, "in", cache_use="write"),
            leaf(self.audio, "in", modality="audio"),
            leaf(self.audio_read, "in", modality="audio", cache_use="read"),
            leaf(self.output, "out"),
            leaf(self.audio_output, "out", modality="audio"),
        ]

    def usage(self) -> theirs.Usage:
        counts = {
            "input_tokens": self.input,
            "cache_read_tokens": self.read + self.audio_read,
            "cache_write_tokens": self.write,
            "input_audio_tokens": self.audio + self.audio_read,
            "cache_audio_read_tokens": self.audio_read,
            "output_tokens": self.output + self.audio_output,
            "output_audio_tokens": self.audio_output,
        }
        return theirs.Usage(**{name: count for name, count in counts.items() if count})


SAMPLES = [
    Sample(1, output=1),
    Sample(1_234, output=567),
    Sample(900, read=80_000, output=33),
    Sample(900, read=5_000, write=7_001, output=33),
    # Around every boundary of a tier in the list: 128,000, 200,000, 272,000 and 512,000.
    Sample(27_999, read=100_000, output=9),
    Sample(28_000, read=100_000, output=9),
    Sample(28_001, read=100_000, output=9),
    Sample(200_000, output=9),
    Sample(200_001, output=9),
    Sample(272_000, output=9),
    Sample(272_001, output=9),
    Sample(512_000, output=9),
    Sample(512_001, output=9),
]
AUDIO = [
    Sample(100, audio=50, output=7, audio_output=11),
    Sample(100, read=30, audio=50, audio_read=20, output=7, audio_output=11),
]
# Before, on and after every date in the list, and at both edges of DeepSeek's hours.
INSTANTS = [
    datetime(2025, 6, 9, 23, 59, 59, tzinfo=UTC),
    datetime(2025, 6, 10, 0, 29, 59, tzinfo=UTC),
    datetime(2026, 3, 12, 0, 30, tzinfo=UTC),
    datetime(2026, 3, 13, 16, 29, 59, tzinfo=UTC),
    datetime(2026, 8, 31, 16, 30, tzinfo=UTC),
    datetime(2026, 9, 1, 12, 0, tzinfo=UTC),
]


@cache
def providers() -> list[theirs.Provider]:
    raw = json.loads(gzip.decompress(PUBLISHED.read_bytes()), parse_float=Decimal)
    return theirs._providers_from_raw(raw)


@cache
def rater() -> OfflineRater:
    made = import_prices(read_price_file(gzip.decompress(PUBLISHED.read_bytes())))
    return OfflineRater([parse_card(text) for text in made.cards.values()], "USD", made.names)


def ours(provider: str, model: str, sample: Sample, at: datetime) -> RatedLine:
    quantities = sample.quantities()
    return rater().rate(
        read_line(
            {
                "served_model": f"{provider}/{model}",
                "outcome": "complete",
                "event_time": at.isoformat(),
                "quantities": quantities,
            }
        )
    )


def compared(samples: list[Sample], with_audio: bool) -> tuple[int, dict[str, set[str]]]:
    """How many requests were compared, and the models that differ, by why."""
    found: dict[str, set[str]] = {}
    count = 0
    for provider in providers():
        for model in provider.models:
            name = f"{provider.id}/{model.id}"
            # A price without a date or hours is the same at every instant.
            for at in INSTANTS if isinstance(model.prices, list) else INSTANTS[-1:]:
                prices = model.get_prices(at)
                keys = {key for key, value in vars(prices).items() if value is not None}
                if with_audio != bool(keys & {"input_audio_mtok", "output_audio_mtok"}):
                    continue
                for sample in samples:
                    count += 1
                    why = difference(provider.id, model, sample, at, keys)
                    if why:
                        found.setdefault(why, set()).add(name)
    return count, found


def difference(
    provider: str, model: theirs.ModelInfo, sample: Sample, at: datetime, keys: set[str]
) -> str:
    """Why the two amounts differ; empty when they are the same, to the last digit."""
    their = Fraction(model.get_prices(at).calc_price(sample.usage())["total_price"])
    if "requests_kcount" in keys:
        # An event counts its requests itself; a usage object is one (test_offline.py).
        fee = model.get_prices(at).requests_kcount
        assert isinstance(fee, Decimal)
        their -= Fraction(fee) / 1000
    result = ours(provider, model.id, sample, at)
    our = Fraction(result.amount_pico, 10**12)
    if result.unpriced:
        return "we: no price, so it waits" if "output_mtok" not in keys else "unpriced"
    if our == their:
        return ""
    # Half a pico-unit a token is what rounding a price can cost.
    if abs(our - their) * 10**12 <= Fraction(1, 2) * (sample.input + sample.output):
        return "we: price rounded to whole pico-units"
    return "different"


def test_every_model_costs_the_same_as_by_genai_prices() -> None:
    count, found = compared(SAMPLES, with_audio=False)
    assert count > 17_000
    assert set(found) == {"we: no price, so it waits", "we: price rounded to whole pico-units"}
    # What the list does not price costs nothing there and waits for a price here.
    assert len(found["we: no price, so it waits"]) == 40
    assert found["we: price rounded to whole pico-units"] == {
        "huggingface_together/Qwen/Qwen3-VL-8B-Instruct",
        "openrouter/google/gemini-2.5-flash-image",
        "openrouter/google/gemini-2.5-flash-lite",
        "openrouter/google/gemini-3-flash-preview",
        "openrouter/google/gemini-3.1-flash-lite",
        "openrouter/google/gemini-3.5-flash",
        "openrouter/~google/gemini-flash-latest",
    }


def test_spoken_tokens_cost_the_same_too() -> None:
    count, found = compared(AUDIO, with_audio=True)
    assert count == 20 * len(AUDIO)
    assert found == {}


def test_names_find_the_same_models() -> None:
    names = import_prices(read_price_file(gzip.decompress(PUBLISHED.read_bytes()))).names
    asked = 0
    for provider in providers():
        for model in provider.models:
            for name in (model.id, model.id.upper(), f"{model.id}-20260131"):
                found = provider.find_model(name, all_providers=providers())
                answer = names.card_model(provider.id, name)
                expected = ""
                if found is not None:
                    home = next(
                        one
                        for one in [provider, *providers()]
                        if any(found is other for other in one.models)
                    )
                    expected = f"{home.id}/{found.id}"
                assert answer == expected, (provider.id, name)
                asked += 1
    assert asked == 3 * 1285
