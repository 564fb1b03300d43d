"""Every model, rated by us and by genai-prices: the same, but for what is listed here.

Two hands that know nothing of each other reckon the same prices for the same
usage. Theirs is the Decimal arithmetic of the pinned package; ours is the
imported cards, through the offline rater. Two lists: the published file of
1,285 models where it lies beside the project, and the one inside the package.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from genai_prices import types as theirs
from tests.unit.pricing.imports import bundled

from pricing.domain.card_yaml import parse_card
from pricing.domain.imports.genai_cards import Import, import_prices
from pricing.domain.imports.price_file import read_price_file
from pricing.domain.offline import OfflineRater
from pricing.domain.readers.usage_line import read_line

FILE = Path(__file__).resolve().parents[5] / "shared" / "data" / "genai_prices_slim.json.gz"
PUBLISHED = pytest.param(
    "published",
    marks=pytest.mark.skipif(not FILE.exists(), reason="the published price list is not here"),
)

# A minute longer: openrouter of the package's list too, 923 models in a dozen versions. The
# ordinary run has its models by the published file alone.
ALL = os.environ.get("TOLLBOOK_ALL_PRICES") == "1"
LEFT_OUT = () if ALL else (("bundled", "openrouter"),)

SAME = ""
WAITS = "the list has no price: free there, waits here"
ROUNDED = "the price is no whole number of pico-units for a token: rounded here"
REFUSED = "refused there: the list prices two kinds and not what is both"


class Sample(NamedTuple):
    """A request: disjoint counts of its leaves."""

    plain: int
    read: int = 0
    write: int = 0
    write_1h: int = 0
    audio: int = 0
    audio_read: int = 0
    output: int = 0
    reasoning: int = 0
    audio_output: int = 0

    @property
    def input(self) -> int:
        return self.plain + self.read + self.write + self.write_1h + self.audio + self.audio_read

    @property
    def all_output(self) -> int:
        return self.output + self.reasoning + self.audio_output

    def quantities(self) -> list[dict[str, Any]]:
        def leaf(amount: int, direction: str, **more: str) -> dict[str, Any]:
            return {"unit": "token", "direction": direction, "amount": amount, **more}

        return [
            leaf(self.plain, "in"),
            leaf(self.read, "in", cache_use="read"),
            leaf(self.write, "in", cache_use="write"),
            leaf(self.write_1h, "in", cache_use="write", cache_ttl="1h"),
            leaf(self.audio, "in", modality="audio"),
            leaf(self.audio_read, "in", modality="audio", cache_use="read"),
            leaf(self.output, "out"),
            leaf(self.reasoning, "out", token_kind="reasoning"),
            leaf(self.audio_output, "out", modality="audio"),
        ]

    def usage(self) -> theirs.Usage:
        counts = {
            "input_tokens": self.input,
            "cache_read_tokens": self.read + self.audio_read,
            "cache_write_tokens": self.write + self.write_1h,
            "cache_write_1h_tokens": self.write_1h,
            "input_audio_tokens": self.audio + self.audio_read,
            "cache_audio_read_tokens": self.audio_read,
            "output_tokens": self.all_output,
            "output_reasoning_tokens": self.reasoning,
            "output_audio_tokens": self.audio_output,
        }
        return theirs.Usage(**{name: count for name, count in counts.items() if count})


# A price is so much for each token: two requests that use all there is show every one.
SAMPLES = [
    Sample(1, output=1),
    Sample(1_234, read=80_000, write=7_001, write_1h=1_009, output=500, reasoning=67),
]
AUDIO = [
    Sample(100, audio=50, output=7, audio_output=11),
    Sample(100, read=30, audio=50, audio_read=20, output=7, audio_output=11),
]


def samples(prices: theirs.ModelPrice) -> Iterator[Sample]:
    """The samples for all, and the last and first request of each tier, cached tokens included."""
    keys = {key for key, value in vars(prices).items() if value is not None}
    if keys & {"input_audio_mtok", "output_audio_mtok"}:
        yield from AUDIO
        return
    yield from SAMPLES
    starts = {
        tier.start
        for value in vars(prices).values()
        if isinstance(value, theirs.TieredPrices)
        for tier in value.tiers
    }
    for start in sorted(starts):
        for more in (0, 1):
            yield Sample(start - 20_000 + more, read=20_000, output=9)


def instants(model: theirs.ModelInfo) -> Iterator[datetime]:
    """Now, and around every date and hour at which the model's prices change."""
    yield datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    if not isinstance(model.prices, list):
        return
    for one in model.prices:
        if isinstance(one.constraint, theirs.StartDateConstraint):
            midnight = datetime.combine(one.constraint.start_date, time(), UTC)
            yield midnight - timedelta(microseconds=1)
            yield midnight
        elif one.constraint is not None:
            for clock in (one.constraint.start_time, one.constraint.end_time):
                edge = datetime.combine(datetime(2026, 11, 23), clock.replace(tzinfo=UTC))  # noqa: DTZ001
                yield edge - timedelta(microseconds=1)
                yield edge


@cache
def file_of(which: str) -> bytes:
    return gzip.decompress(FILE.read_bytes()) if which == "published" else bundled.as_file()


@cache
def providers(which: str) -> list[theirs.Provider]:
    return theirs._providers_from_raw(json.loads(file_of(which), parse_float=Decimal))


@cache
def imported(which: str) -> Import:
    return import_prices(read_price_file(file_of(which)))


@cache
def rater(which: str) -> OfflineRater:
    made = imported(which)
    cards = [
        parse_card(text)
        for name, text in made.cards.items()
        if (which, name.partition(".")[0]) not in LEFT_OUT
    ]
    return OfflineRater(cards, "USD", made.names)


class Asked(NamedTuple):
    """A request to reckon twice."""

    which: str
    name: str
    sample: Sample
    at: datetime
    tier: str


def difference(asked: Asked, prices: theirs.ModelPrice) -> str:
    """Why the two amounts differ; SAME when they are equal, to the last digit."""
    sample = asked.sample
    try:
        their = Fraction(prices.calc_price(sample.usage())["total_price"])
    except ValueError as refused:
        return REFUSED if "Missing" in str(refused) else str(refused)
    if prices.requests_kcount is not None:
        # An event counts its requests itself; a usage object is one (test_offline.py).
        assert isinstance(prices.requests_kcount, Decimal)
        their -= Fraction(prices.requests_kcount) / 1000
    result = rater(asked.which).rate(
        read_line(
            {
                "served_model": asked.name,
                "service_tier": asked.tier,
                "outcome": "complete",
                "event_time": asked.at.isoformat(),
                "quantities": sample.quantities(),
            }
        )
    )
    our = Fraction(result.amount_pico, 10**12)
    if our == their and not result.unpriced:
        return SAME
    if result.unpriced:
        both = {"input_mtok", "output_mtok"} <= {
            key for key, value in vars(prices).items() if value is not None
        }
        return "a leaf without a price" if both else WAITS
    # Half a pico-unit a token is what rounding a price can cost.
    if abs(our - their) * 10**12 <= Fraction(1, 2) * (sample.input + sample.all_output):
        return ROUNDED
    return f"another amount: {float(our)} and {float(their)}"


def has_variant(model: theirs.ModelInfo, context: dict[str, str], at: datetime) -> bool:
    """Whether the list has a price for a context at an instant."""
    return any(
        one.when == context and (one.constraint is None or one.constraint.active(at))
        for one in model.price_variants or ()
    )


def compared(which: str, context: dict[str, str], tier: str) -> tuple[int, dict[str, set[str]]]:
    """How many requests were compared, and the models that differ, by why."""
    found: dict[str, set[str]] = {}
    count = 0
    for provider in providers(which):
        if (which, provider.id) in LEFT_OUT:
            continue
        for model in provider.models:
            name = f"{provider.id}/{model.id}"
            for at in instants(model):
                if context and not has_variant(model, context, at):
                    # There the standard price; here a tier without a price has none.
                    continue
                prices = model.get_prices(at, context or None)
                for sample in samples(prices):
                    count += 1
                    why = difference(Asked(which, name, sample, at, tier), prices)
                    if why != SAME:
                        found.setdefault(why, set()).add(name)
    return count, found


@pytest.mark.parametrize("which", [PUBLISHED, "bundled"])
def test_every_model_costs_the_same(which: str) -> None:
    made = imported(which)
    count, found = compared(which, {}, "")
    assert count > made.models
    # Nothing else differs, and each of these models is in the import's own report.
    assert set(found) <= {WAITS, ROUNDED}, found
    assert found[ROUNDED] <= {one.model for one in made.rounded}
    if which == "bundled":
        assert (made.models, len(made.not_expressed)) == (2330, 9)
    else:
        assert (made.models, len(made.not_expressed)) == (1285, 0)
        assert found[WAITS] == set(made.without_output)
        assert (len(found[WAITS]), len(found[ROUNDED])) == (40, 7)


def test_a_batch_costs_the_same_too() -> None:
    count, found = compared("bundled", {"processing": "batch"}, "batch")
    assert count > 150
    assert set(found) <= {WAITS, ROUNDED}, found


@pytest.mark.parametrize("which", [PUBLISHED, "bundled"])
def test_names_find_the_same_models(which: str) -> None:
    names = imported(which).names
    everyone = providers(which)
    for provider in everyone:
        for model in provider.models:
            for name in (model.id, model.id.upper(), f"{model.id}-20260131"):
                found = provider.find_model(name, all_providers=everyone)
                expected = ""
                if found is not None:
                    home = next(
                        one
                        for one in [provider, *everyone]
                        if any(found is other for other in one.models)
                    )
                    expected = f"{home.id}/{found.id}"
                assert names.card_model(provider.id, name) == expected, (provider.id, name)
