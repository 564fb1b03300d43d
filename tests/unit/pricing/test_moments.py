"""Segments of time: two instants are in one exactly where no card's price can differ."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.domain import hours
from pricing.domain.card_yaml import parse_card
from pricing.domain.moments import Moments, windows_at
from pricing.domain.months import month_of

CARD = """
card: {id}
currency: USD
effective_from: 2026-{month}-01T00:00:00Z
timezone: {zone}
time_windows:
  night: {{from: "{start}", to: "06:00"}}
  weekend: {{days: [sat, sun], from: "00:00", to: "24:00"}}
lines:
  - {{id: out, match: {{direction: out}}, price: 1, included: 5}}
  - {{id: night, match: {{direction: out, time_window: night}}, price: 2}}
"""


def at_us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


# Around changes of clocks, months, windows and the edges of cards; and anywhere.
EDGES = [
    at_us(text)
    for text in (
        "2026-03-29T01:00:00",
        "2026-10-25T01:00:00",
        "2026-10-25T00:00:00",
        "2026-04-04T15:30:00",
        "2026-01-31T23:00:00",
        "2026-06-01T00:00:00",
        "2026-07-03T22:00:00",
        "2026-07-04T04:00:00",
        # 21:07:30 in Berlin, within a quarter of an hour.
        "2026-07-03T19:07:30",
        "2026-12-03T20:07:30",
    )
]
INSTANTS = st.lists(
    st.one_of(
        st.builds(
            lambda edge, off: edge + off, st.sampled_from(EDGES), st.integers(-(10**9), 10**9)
        ),
        st.builds(
            lambda edge, off: edge + off * 900_000_000,
            st.sampled_from(EDGES),
            st.integers(-200, 200),
        ),
        st.integers(at_us("2025-12-30T00:00:00"), at_us("2026-12-31T00:00:00")),
    ),
    min_size=2,
    max_size=30,
)


@pytest.mark.parametrize("start", ["22:00", "21:07:30"])
@given(instants=INSTANTS)
def test_alone_and_by_the_run_an_instant_is_in_the_segment_that_the_clocks_say(
    start: str, instants: list[int]
) -> None:
    cards = [
        parse_card(CARD.format(id=name, zone=zone, month=month, start=start))
        for name, zone, month in (
            ("berlin", "Europe/Berlin", "01"),
            ("lord-howe", "Australia/Lord_Howe", "06"),
        )
    ]

    def told(instant: int) -> object:
        """What decides, worked out for this instant alone."""
        locals_ = [hours.local_time(card.timezone, instant) for card in cards]
        return (
            month_of(instant),
            [card.effective_from_us <= instant for card in cards],
            [local.period for local in locals_],
            [windows_at(card.windows, local) for card, local in zip(cards, locals_, strict=True)],
        )

    alone = Moments(cards)
    numbers = [alone.segment(instant) for instant in instants]
    for one, first in zip(instants, numbers, strict=True):
        for other, second in zip(instants, numbers, strict=True):
            assert (first == second) == (told(one) == told(other))
        assert told(alone.sample_us(first)) == told(one)
    assert alone.segments(np.array(instants, dtype=np.int64)).tolist() == numbers
