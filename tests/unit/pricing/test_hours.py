"""Windows go by a wall clock: over midnight, and through the nights when clocks change."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pricing.domain import hours
from pricing.domain.card import TimeWindow

FRIDAY_NIGHT = TimeWindow("friday-night", (4,), 22 * 3600, 6 * 3600)
SMALL_HOURS = TimeWindow("small-hours", tuple(range(7)), 2 * 3600, 3 * 3600)


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000_000)


@pytest.mark.parametrize(
    ("instant", "inside"),
    [
        ("2026-01-02T21:59:59", False),  # Friday
        ("2026-01-02T22:00:00", True),
        ("2026-01-03T05:59:59", True),  # Saturday, of Friday's window
        ("2026-01-03T06:00:00", False),
        ("2026-01-02T05:00:00", False),  # Friday morning is of Thursday's
        ("2026-01-03T23:00:00", False),
    ],
)
def test_a_window_over_midnight_is_of_its_first_day(instant: str, inside: bool) -> None:
    assert hours.holds(FRIDAY_NIGHT, hours.local_time("UTC", at(instant))) is inside


def test_a_repeated_hour_is_twice_in_its_window_and_a_skipped_one_never() -> None:
    """In Berlin: 2026-10-25 has 02:00 to 03:00 twice, 2026-03-29 has it not."""

    def inside(day: str) -> int:
        start = at(f"{day}T00:00:00")
        return sum(
            hours.holds(SMALL_HOURS, hours.local_time("Europe/Berlin", start + minute * 60_000_000))
            for minute in range(-120, 1_320)
        )

    assert (inside("2026-10-25"), inside("2026-03-29"), inside("2026-06-01")) == (120, 0, 60)


def test_a_month_is_the_zones_own() -> None:
    assert hours.local_time("Asia/Kathmandu", at("2026-01-31T18:15:00")).period == "2026-02"
    assert hours.local_time("Asia/Kathmandu", at("2026-01-31T18:14:59")).period == "2026-01"
    assert hours.local_time("UTC", at("2026-01-31T23:59:59")).period == "2026-01"


@pytest.mark.parametrize(
    ("zone", "start", "now", "then"),
    [
        ("UTC", 4 * hours.DAY_S, "2026-01-01T10:00:00", "2026-01-02T00:00:00"),
        ("UTC", 4 * hours.DAY_S, "2026-01-02T00:00:00", "2026-01-02T00:00:00"),
        ("UTC", 4 * hours.DAY_S, "2026-01-02T00:00:01", "2026-01-09T00:00:00"),
        # Sunday 12:00 in Berlin, over the nights when its clocks change.
        ("Europe/Berlin", 6 * hours.DAY_S + 43_200, "2026-03-28T23:00:00", "2026-03-29T10:00:00"),
        ("Europe/Berlin", 6 * hours.DAY_S + 43_200, "2026-10-24T22:00:00", "2026-10-25T11:00:00"),
    ],
)
def test_the_next_time_that_a_clock_shows_a_second_of_the_week(
    zone: str, start: int, now: str, then: str
) -> None:
    assert hours.next_us(zone, start, at(now)) == at(then)
