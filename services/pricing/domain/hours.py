"""Clocks of cards: the local date and time of an instant, and whether a window holds it.

An instant has one local time in a zone, also in the hour that a change of
clocks repeats; so whether a window holds it is never in doubt. An hour that a
change skips holds no instant.

Zones come from the pinned `tzdata` package and from nowhere else: the files of
a machine differ from another's, and a bill may not.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import resources
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from pricing.domain.card import TimeWindow

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
DAY_S: Final = 86_400


class LocalTime(NamedTuple):
    """A wall clock's answer."""

    year: int
    month: int
    weekday: int
    """Monday is 0."""
    second: int
    """Of the day, as the clock shows it."""
    utc_offset_s: int

    @property
    def period(self) -> str:
        """The calendar month, as `2026-01`."""
        return f"{self.year:04d}-{self.month:02d}"


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """A zone by its IANA name. Errors: ValueError when there is none."""
    *folders, file = name.split("/")
    try:
        if not all(
            part.replace("_", "").replace("-", "").replace("+", "").isalnum()
            for part in (*folders, file)
        ):
            raise FileNotFoundError
        source = resources.files("tzdata").joinpath("zoneinfo", *folders, file)
        with source.open("rb") as data:
            return ZoneInfo.from_file(data, key=name)
    except (OSError, ValueError, ModuleNotFoundError):
        raise ValueError(f"{name[:70]!r} is no time zone such as Europe/Berlin") from None


def local_time(zone_name: str, at_us: int) -> LocalTime:
    """The local time of an instant from 1970 to 9999, to the second. Errors: ValueError."""
    instant = _EPOCH + timedelta(seconds=at_us // 1_000_000)
    try:
        local = instant.astimezone(zone(zone_name))
    except OverflowError:
        local = instant
    offset = local.utcoffset() or timedelta()
    second = local.hour * 3600 + local.minute * 60 + local.second
    offset_s = offset.days * DAY_S + offset.seconds
    return LocalTime(local.year, local.month, local.weekday(), second, offset_s)


def holds(window: TimeWindow, local: LocalTime) -> bool:
    """Tell whether a window holds a local time."""
    if window.start_s < window.end_s:
        return local.weekday in window.days and window.start_s <= local.second < window.end_s
    # Over midnight: the evening is of this day's window, the morning of yesterday's.
    if local.second >= window.start_s and local.weekday in window.days:
        return True
    return local.second < window.end_s and (local.weekday - 1) % 7 in window.days


def spans(window: TimeWindow) -> list[tuple[int, int]]:
    """The window as [start, end) in seconds of a week that begins on Monday."""
    found: list[tuple[int, int]] = []
    for day in window.days:
        start = day * DAY_S + window.start_s
        length = (window.end_s - window.start_s) % DAY_S or DAY_S
        end = start + length
        found.append((start, min(end, 7 * DAY_S)))
        if end > 7 * DAY_S:
            found.append((0, end - 7 * DAY_S))
    return found


def overlap(one: TimeWindow, other: TimeWindow) -> bool:
    """Tell whether some local time is in both."""
    return any(
        a_start < b_end and b_start < a_end
        for a_start, a_end in spans(one)
        for b_start, b_end in spans(other)
    )


def next_us(zone_name: str, second_of_week: int, from_us: int) -> int:
    """The next instant, from one on, at which a zone's clock shows a second of a Monday's week.

    Where a change of clocks skips it: the instant that would have been it. Errors: ValueError.
    """
    local = local_time(zone_name, from_us)
    wait_s = (second_of_week - local.weekday * DAY_S - local.second) % (7 * DAY_S)
    then_us = from_us + wait_s * 1_000_000
    # The clock may have been changed in between.
    moved_s = local_time(zone_name, then_us).utc_offset_s - local.utc_offset_s
    return max(from_us, then_us - moved_s * 1_000_000)
