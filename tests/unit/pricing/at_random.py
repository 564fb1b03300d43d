"""Cards and usage at random: every feature of a card, with bounds so low that all are met."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from hypothesis import assume
from hypothesis import strategies as st
from tests.unit.pricing import builders as make

from pricing.domain import card as cards
from pricing.domain import card_rules
from pricing.domain.card import Card, Commitment, Line, Multiplier, Step, Tiers, TimeWindow
from pricing.domain.outcomes import DEFAULT_OUTCOMES
from tollbook.usage.v1 import usage_pb2 as usage

MODELS = ("tiny", "small")
ADAPTERS = ("", "legal")
TIERS = ("", "flex", "odd")
REGIONS = ("", "eu")
HOUR_US = 3_600 * 1_000_000
# From late January to early February 2026, with a change of clocks far away; hours matter.
TIMES_US = st.integers(28 * 24, 34 * 24).map(lambda hour: make.T0_US + hour * HOUR_US)
# Around the night in which Berlin's clocks go forward.
SPRING_US = st.integers(-30, 30).map(lambda half: 1_774_746_000_000_000 + half * HOUR_US // 2)

EVERY_DAY = (0, 1, 2, 3, 4, 5, 6)

pico = st.integers(0, 40).map(lambda price: price * 120)
# So far apart that a step makes a month cheaper than it was before.
steep = st.sampled_from([0, 120, 1_200, 12_000, 120_000])


@st.composite
def tiers(draw: st.DrawFn) -> Tiers:
    by, mode = draw(
        st.sampled_from(
            [
                (cards.CONTEXT_LENGTH, cards.WHOLE_REQUEST),
                (cards.CONTEXT_LENGTH, cards.GRADUATED),
                (cards.MONTHLY_VOLUME, cards.GRADUATED),
                (cards.MONTHLY_VOLUME, cards.VOLUME),
            ]
        )
    )
    overs = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=3)))
    return Tiers(
        by,
        mode,
        draw(st.sampled_from([cards.GREATER, cards.GREATER_OR_EQUAL])),
        tuple(Step(over, draw(pico)) for over in overs),
    )


@st.composite
def multipliers(draw: st.DrawFn, prefix: str) -> tuple[Multiplier, ...]:
    chosen = draw(
        st.lists(
            st.sampled_from(
                [
                    ("service_tier", "flex"),
                    ("region", "eu"),
                    ("adapter", "*"),
                    ("time_window", "night"),
                    ("model", "tiny"),
                ]
            ),
            unique=True,
            max_size=2,
        )
    )
    factors = st.sampled_from([Fraction(1, 2), Fraction(3, 4), Fraction(11, 10), Fraction(2)])
    return tuple(
        Multiplier(f"{prefix}{index}", (pair,), draw(factors)) for index, pair in enumerate(chosen)
    )


@st.composite
def lines(draw: st.DrawFn, index: int) -> Line:
    unit = draw(st.sampled_from(["token", "token", "token", "search"]))
    match: dict[str, str] = {}
    surcharge = draw(st.sampled_from([False] * 5 + [True]))
    if not surcharge and draw(st.sampled_from([True, True, True, False])):
        match["service_tier"] = draw(st.sampled_from(["standard", "standard", "flex"]))
    if unit == "token":
        match |= draw(
            st.sampled_from([{}, {"direction": "in"}, {"direction": "out"}, {"cache_use": "read"}])
        )
    match |= draw(
        st.sampled_from(
            [
                {},
                {},
                {"model": "tiny"},
                {"model": "small"},
                {"adapter": "*"},
                {"region": "eu"},
                {"time_window": "night"},
                {"adapter": "legal"},
            ]
        )
    )
    stepped = draw(st.none() | tiers()) if unit == "token" and not surcharge else None
    metered = stepped is not None and stepped.by == cards.MONTHLY_VOLUME
    plain = stepped is None and not surcharge
    included = draw(st.sampled_from([0, 0, 7])) if (plain or metered) else 0
    metered = metered or included > 0
    by_request = not metered and not surcharge
    percentage = Fraction(draw(st.sampled_from([0, 0, 5, 25])))
    price = draw(pico)
    if surcharge:
        price = 0 if percentage else price or 120
    return Line(
        f"line-{index}",
        unit,
        tuple(sorted(match.items())),
        price,
        draw(st.integers(0, 3)),
        stepped,
        draw(st.sampled_from([0, 0, 4])) if plain and not metered else 0,
        draw(st.sampled_from([0, 0, 3])) if by_request else 0,
        draw(st.sampled_from([0, 0, 500])) if by_request else 0,
        included,
        draw(st.sampled_from(["", "shared"])) if metered else "",
        percentage,
        surcharge,
        draw(multipliers("own")) if draw(st.booleans()) else (),
        draw(st.sampled_from([cards.HALF_EVEN, cards.UP, cards.DOWN])),
    )


@st.composite
def random_cards(draw: st.DrawFn, card_id: str = "random") -> Card:
    accounts = draw(st.sampled_from([(), ("acme",)]))
    most = draw(st.sampled_from([None, None, 40_000]))
    least = draw(st.sampled_from([0, 30_000])) if accounts else 0
    outcomes = DEFAULT_OUTCOMES | draw(st.sampled_from([{}, {"client_abort": "delivered"}]))
    card = Card(
        card_id,
        "USD",
        draw(st.sampled_from([0, make.T0_US + 31 * 24 * HOUR_US])),
        draw(st.sampled_from([None, None, make.T0_US + 32 * 24 * HOUR_US + 7])),
        draw(st.integers(0, 1)),
        accounts,
        tuple(sorted(outcomes.items())),
        tuple(draw(lines(index)) for index in range(draw(st.integers(1, 5)))),
        cards.SELL,
        draw(st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"])),
        (
            TimeWindow(
                "night", draw(st.sampled_from([(0, 1, 2, 3, 4, 5, 6), (4,)])), 79_200, 21_600
            ),
        ),
        draw(multipliers("card")),
        draw(st.sampled_from([(), ("base_model",), ("parent_class", "base_model")])),
        Commitment(least, most) if least or most else None,
    )
    problem = next(card_rules.problems(card), None)
    assume(problem is None)
    return card


@st.composite
def falling_cards(draw: st.DrawFn) -> Card:
    """A card whose lines get cheaper by their month's volume, all units of it."""
    card = draw(random_cards())
    matches = ({"direction": "in"}, {"direction": "out"}, {"model": "tiny"}, {"model": "small"})
    found = []
    for index in range(draw(st.integers(1, 3))):
        overs = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=3)))
        prices = sorted(draw(st.lists(steep, min_size=len(overs) + 1, max_size=len(overs) + 1)))
        found.append(
            Line(
                f"line-{index}",
                "token",
                tuple(draw(st.sampled_from(matches)).items()),
                prices.pop(),
                priority=index,
                tiers=Tiers(
                    cards.MONTHLY_VOLUME,
                    cards.VOLUME,
                    draw(st.sampled_from([cards.GREATER, cards.GREATER_OR_EQUAL])),
                    tuple(Step(over, prices.pop()) for over in overs),
                ),
                meter=draw(st.sampled_from(["", "shared"])),
                rounding=cards.HALF_EVEN,
            )
        )
    card = replace(card, lines=tuple(found))
    assume(next(card_rules.problems(card), None) is None)
    return card


@st.composite
def events(draw: st.DrawFn, position: int) -> usage.UsageEvent:
    model = draw(st.sampled_from(MODELS))
    adapter = draw(st.sampled_from(ADAPTERS))
    event = usage.UsageEvent(
        event_id=f"event-{position}",
        account_id=draw(st.sampled_from(["acme", "bolt"])),
        served_model=f"{model}-{adapter}" if adapter else model,
        base_model=model,
        adapter=adapter,
        service_tier=draw(st.sampled_from(TIERS)),
        region=draw(st.sampled_from(REGIONS)),
        outcome=draw(
            st.sampled_from(
                [usage.OUTCOME_COMPLETE, usage.OUTCOME_CLIENT_ABORT, usage.OUTCOME_ENGINE_LOST]
            )
        ),
        engine_id="engine-1",
    )
    at_us = draw(TIMES_US | SPRING_US)
    event.event_time.seconds, event.event_time.nanos = divmod(at_us * 1_000, 10**9)
    counts = st.integers(0, 50)
    for cache in (usage.CACHE_USE_NONE, usage.CACHE_USE_READ):
        event.quantities.add(
            unit=usage.UNIT_TOKEN,
            direction=usage.DIRECTION_IN,
            cache_use=cache,
            amount=draw(counts),
        )
    amount = draw(counts)
    event.quantities.add(
        unit=usage.UNIT_TOKEN,
        direction=usage.DIRECTION_OUT,
        token_kind=draw(st.sampled_from([usage.TOKEN_KIND_PLAIN, usage.TOKEN_KIND_REASONING])),
        amount=amount,
        undelivered_amount=draw(st.integers(0, amount)),
    )
    event.quantities.add(unit=usage.UNIT_SEARCH, amount=draw(st.integers(0, 6)))
    return event


def usage_leaf(position: int, event: usage.UsageEvent) -> bytes:
    record = usage.UsageRecord(
        stream_id="s", stream_seq=position, usage_event=event.SerializeToString()
    )
    return make.entry(record.SerializeToString(), position)
