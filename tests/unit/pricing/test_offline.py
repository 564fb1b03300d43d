"""Rating without a log: as the reference rates, with months counted line after line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.pricing.imports import sample
from tests.unit.pricing.published.rated import catalogue

from pricing.domain.card import Card
from pricing.domain.card_yaml import parse_card
from pricing.domain.events import Event
from pricing.domain.imports.genai_cards import import_prices
from pricing.domain.imports.price_file import read_price_file
from pricing.domain.offline import OfflineRater
from pricing.domain.rating import RatedLeaf, rate_event
from pricing.domain.readers.reading import UsageReadError
from pricing.domain.readers.usage_line import UsageLine, read_line

CARD = """
card: mixed
currency: USD
effective_from: 2026-01-01T00:00:00Z
time_windows:
  night: {from: 22:00, to: 06:00}
multipliers:
  - {id: batch, match: {service_tier: batch}, factor: 0.5}
  - {id: night, match: {time_window: night}, factor: 0.9}
lines:
  - {id: in, match: {direction: in}, per: 1000, price: 3}
  - {id: read, match: {direction: in, cache_use: read}, per: 1000, price: 0.3}
  - id: long
    match: {model: long, direction: in}
    priority: 1
    per: 1000
    price: 1
    tiers: {by: context_length, mode: whole_request, steps: [{over: 20, price: 2}]}
  - id: steps
    match: {model: steps, direction: in}
    priority: 1
    per: 1000
    price: 1
    tiers: {by: context_length, mode: graduated, steps: [{over: 20, price: 2}]}
  - {id: out, match: {direction: out}, per: 1000, price: 15}
  - id: floor
    match: {model: long, direction: out}
    priority: 1
    per: 1000
    price: 15
    minimum_units: 5
  - {id: eu, surcharge: true, match: {model: m, region: eu}, percentage: 10}
outcomes: {client_abort: delivered}
"""


def line(model: str = "m", **usage: Any) -> UsageLine:
    counts = {"input_tokens": 10, "output_tokens": 4} | usage
    return read_line({"model": model, "usage": counts, "time": "2026-01-15T12:00:00Z"})


def rater(*cards: str, as_of_us: int | None = None) -> OfflineRater:
    return OfflineRater([parse_card(card) for card in cards], "USD", as_of_us=as_of_us)


LINES = st.builds(
    lambda model, tier, region, hour, outcome, counts: {
        "served_model": model,
        "service_tier": tier,
        "region": region,
        "event_time": f"2026-01-15T{hour:02d}:00:00Z",
        "outcome": outcome,
        "quantities": [
            {"unit": "token", "direction": "in", "amount": counts[0]},
            {"unit": "token", "direction": "in", "cache_use": "read", "amount": counts[1]},
            {
                "unit": "token",
                "direction": "out",
                "amount": counts[2] + counts[3],
                "undelivered_amount": counts[3],
            },
        ],
    },
    st.sampled_from(["m", "long", "steps"]),
    st.sampled_from(["", "batch", "priority"]),
    st.sampled_from(["", "eu"]),
    st.integers(0, 23),
    st.sampled_from(["complete", "client_abort", "engine_lost"]),
    st.tuples(*[st.integers(0, 15)] * 4),
)


def shown(leaves: Sequence[RatedLeaf]) -> list[object]:
    """Rated leaves without the identity of the catalogue they come from."""
    return [
        (
            leaf._replace(priced=None),
            leaf.priced and (leaf.priced.line, leaf.priced.price, leaf.priced.rule_text),
        )
        for leaf in leaves
    ]


@given(st.lists(LINES, max_size=6))
def test_every_line_is_rated_as_the_reference_rates_it(given_lines: list[dict[str, Any]]) -> None:
    offline = rater(CARD)
    cards = catalogue(CARD)
    for data in given_lines:
        read = read_line(data)
        result = offline.rate(read)
        assert read.at_us is not None
        event = Event(0, "", "", read.context, read.outcome, read.at_us, read.leaves, "")
        assert shown(result.leaves) == shown(rate_event(event, "USD", cards))
        assert result.amount_pico == sum(leaf.amount_pico for leaf in result.leaves) >= 0
        assert result.unpriced == sum(leaf.priced is None for leaf in result.leaves)


MONTHLY = """
card: monthly
currency: USD
effective_from: 2026-01-01T00:00:00Z
commitment: {maximum: 0.05}
lines:
  - id: in
    match: {direction: in}
    per: 1000
    price: 1.00
    included: 15
    tiers: {by: monthly_volume, mode: graduated, steps: [{over: 30, price: 0.50}]}
  - {id: out, match: {direction: out}, per: 1000, price: 1.00}
"""


def test_a_months_volume_is_counted_line_after_line_and_its_most_holds() -> None:
    offline = rater(MONTHLY)
    results = [offline.rate(line(output_tokens=0)) for _ in range(4)]
    # 10 free; 5 free and 5 at 0.001; 10 at 0.001; 10 at 0.0005.
    assert [result.amount_pico for result in results] == [0, 5 * 10**9, 10 * 10**9, 5 * 10**9]
    # 0.02 so far; of 0.04 more only 0.03 are owed, and then nothing.
    last = offline.rate(line(input_tokens=0, output_tokens=40))
    assert (last.amount_pico, last.commitment_pico) == (30 * 10**9, -10 * 10**9)
    assert offline.rate(line(input_tokens=0, output_tokens=40)).amount_pico == 0
    other = read_line(
        {
            "account": "other",
            "model": "m",
            "usage": {"input_tokens": 0, "output_tokens": 40},
            "time": "2026-01-15T12:00:00Z",
        }
    )
    assert offline.rate(other).amount_pico == 40 * 10**9


def test_what_no_line_prices_is_counted_and_not_free() -> None:
    result = rater(CARD).rate(
        read_line(
            {
                "model": "m",
                "usage": {"prompt_tokens": 10, "completion_tokens": 4},
                "service_tier": "flex",
                "created": 1_770_000_000,
            }
        )
    )
    assert result.unpriced == 2
    assert all(leaf.priced is None for leaf in result.leaves)


def test_versions_of_a_card_are_numbered_in_the_order_given() -> None:
    later = CARD.replace("2026-01-01", "2026-01-10").replace("price: 3}", "price: 4}")
    offline = rater(CARD, later)
    result = offline.rate(line())
    priced = result.leaves[0].priced
    assert priced is not None
    assert (priced.published.version, priced.price.unit_pico) == (2, 4 * 10**9)
    early = rater(CARD, later, as_of_us=1_767_225_600_000_000).rate(line())
    priced = early.leaves[0].priced
    assert priced is not None
    assert (priced.published.version, priced.price.unit_pico) == (1, 27 * 10**8)


def test_a_line_without_a_time_needs_an_instant_to_rate_all_as_of() -> None:
    timeless = read_line({"model": "m", "usage": {"prompt_tokens": 1}})
    with pytest.raises(UsageReadError, match="time: no time, no created"):
        rater(CARD).rate(timeless)
    assert rater(CARD, as_of_us=1_770_000_000_000_000).rate(timeless).amount_pico > 0


@pytest.fixture(scope="module")
def imported() -> OfflineRater:
    made = import_prices(read_price_file(sample.slim_file()))
    cards: Sequence[Card] = [parse_card(text) for text in made.cards.values()]
    return OfflineRater(cards, "USD", made.names)


def cost(rates: OfflineRater, **given_line: Any) -> tuple[str, int]:
    result = rates.rate(read_line({"created": 1_770_000_000} | given_line))
    assert not result.unpriced
    return result.context.model, result.amount_pico


def test_a_model_is_found_under_the_name_that_the_answer_gave(imported: OfflineRater) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 10}
    # 1000 x 3 + 10 x 15 of a million, and a request at 12 a thousand.
    expected = ("acme/bolt-1", 3_150_000_000 + 12_000_000_000)
    for name in ("bolt-1", "bolt-1-20260131", "acme/bolt-1"):
        provider = "" if "/" in name else "acme"
        assert cost(imported, provider=provider, model=name, usage=usage) == expected
    assert cost(imported, provider="acme", model="walnut", usage=usage) == (
        "other/nut",
        1_020_000_000,
    )


@pytest.mark.parametrize("provider", ["acme", ""])
def test_a_model_without_a_price_never_takes_anothers(
    imported: OfflineRater, provider: str
) -> None:
    name = "nutcracker" if provider else "acme/nutcracker"
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    line = {"provider": provider, "model": name, "usage": usage, "created": 1_770_000_000}
    result = imported.rate(read_line(line))
    assert (result.context.model, result.unpriced) == ("acme/nutcracker", 2)
    # And an event's model is the one that was served, whatever other lists call it.
    event = {
        "served_model": "walnut",
        "outcome": "complete",
        "event_time": "2026-01-31T00:00:00Z",
        "quantities": [{"unit": "token", "direction": "in", "amount": 1}],
    }
    assert imported.rate(read_line(event)).unpriced == 1


def test_a_fee_for_a_request_is_of_usage_objects_and_not_of_events(imported: OfflineRater) -> None:
    quantities = [{"unit": "token", "direction": "in", "amount": 1000}]
    event = {
        "served_model": "acme/bolt-1",
        "outcome": "complete",
        "event_time": "2026-01-31T00:00:00Z",
        "quantities": quantities,
    }
    assert imported.rate(read_line(event)).amount_pico == 3_000_000_000
    quantities.append({"unit": "request", "direction": "none", "amount": 1})
    assert imported.rate(read_line(event)).amount_pico == 15_000_000_000
