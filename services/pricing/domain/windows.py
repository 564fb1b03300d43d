"""Windows of time that spend limits count in: which one an instant falls in, by a zone's clock.

A window is named by the instant it begins at. Minutes and hours are cut by the
offset in force at the instant, so the hour that a clock goes through twice is
two windows; days, weeks and months begin at midnight of the zone, so they last
as long as the zone's clock says, an hour more or less where it is changed.
Every instant falls in one window, and in the same one for whoever asks.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from pricing.domain import hours

MINUTE: Final = "minute"
HOUR: Final = "hour"
DAY: Final = "day"
WEEK: Final = "week"
MONTH: Final = "month"
EVER: Final = "ever"
WINDOWS: Final = (MINUTE, HOUR, DAY, WEEK, MONTH, EVER)

MINUTE_US: Final = 60_000_000
LAST_US: Final = 253_402_300_799_000_000
"""The last second of the year 9999."""
_ALWAYS_US: Final = 2**63 - 1
_UNIT_US: Final = {MINUTE: MINUTE_US, HOUR: 60 * MINUTE_US}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_US: Final = 250_000_000_000_000_000  # the year 9892: no zone's clock runs past 9999
# No clock is set back further since 1970, but for whole days once.
_CHANGE_US: Final = 3 * 60 * MINUTE_US


def zone_problem(name: str) -> str | None:
    """What is wrong with a zone's name, or None. "" is UTC."""
    try:
        zone_of(name)
    except ValueError:
        return f"there is no time zone {name[:70]!r}; give an IANA name such as Europe/Berlin"
    return None


def zone_of(name: str) -> ZoneInfo:
    """The zone, as cards have it: of the pinned data, not of the machine's. Errors: ValueError."""
    return hours.zone(name or "UTC")


def instant_us(moment: datetime) -> int:
    """Microseconds since the epoch of an aware instant, exact."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def local(at_us: int, zone: str) -> datetime:
    """The zone's clock at an instant; instants beyond its calendar are moved to its ends."""
    return (_EPOCH + timedelta(microseconds=max(0, min(at_us, _MAX_US)))).astimezone(zone_of(zone))


def minute_us(at_us: int) -> int:
    """The minute that an instant falls in; instants that no calendar has are moved to its ends."""
    return max(0, min(at_us, LAST_US)) // MINUTE_US * MINUTE_US


def midnight_us(day: date, zone: str) -> int:
    """The instant at which a day begins by a zone's clock."""
    return instant_us(datetime(day.year, day.month, day.day, tzinfo=zone_of(zone)))


def window_start_us(window: str, zone: str, at_us: int) -> int:
    """The instant that names the window which `at_us` falls in."""
    if window == EVER:
        return 0
    clock = local(at_us, zone)
    if window in _UNIT_US:
        offset = clock.utcoffset() or timedelta()
        shift_us = (offset.days * 86_400 + offset.seconds) * 1_000_000
        unit_us = _UNIT_US[window]
        return (instant_us(clock) + shift_us) // unit_us * unit_us - shift_us
    day = clock.date()
    if window == WEEK:
        day -= timedelta(days=min(day.weekday(), (day - date.min).days))
    elif window == MONTH:
        day = day.replace(day=1)
    return midnight_us(day, zone)


def stretch_of(window: str, zone: str, at_us: int) -> tuple[int, int] | None:
    """[its name and first instant, first instant after) of the window that an instant falls in.

    None where that may not be all of it: a clock that is changed near an edge can go through the
    edge twice, and a window can begin at another instant than its name.
    """
    if window == EVER:
        return 0, _ALWAYS_US
    start_us = window_start_us(window, zone, at_us)
    if window in _UNIT_US:
        end_us = start_us + _UNIT_US[window]
        between = [(start_us, end_us - 1)]
    else:
        end_us = _next_us(window, zone, at_us)
        between = [(edge - _CHANGE_US, edge + _CHANGE_US) for edge in (start_us, end_us)]
    if between[0][0] < 0 or between[-1][1] > LAST_US or not start_us <= at_us < end_us:
        return None
    is_even = all(_offset(one, zone) == _offset(other, zone) for one, other in between)
    return (start_us, end_us) if is_even else None


def _next_us(window: str, zone: str, at_us: int) -> int:
    """The instant at which the next day, week or month begins."""
    day = local(at_us, zone).date()
    if window == DAY:
        following = day + timedelta(days=1)
    elif window == WEEK:
        following = day + timedelta(days=7 - day.weekday())
    else:
        following = _month_after(day.year, day.month)
    return midnight_us(following, zone)


def _month_after(year: int, month: int) -> date:
    return date(year + month // 12, month % 12 + 1, 1)


def _offset(at_us: int, zone: str) -> timedelta:
    return local(at_us, zone).utcoffset() or timedelta()


def windows_before(window: str, zone: str, start_us: int, count: int) -> list[int]:
    """The windows before one that begins at an instant, the nearest first."""
    found: list[int] = []
    while len(found) < count and start_us > 0:
        start_us = window_start_us(window, zone, start_us - 1)
        found.append(start_us)
    return found


def month_bounds_us(period: str, zone: str) -> tuple[int, int]:
    """[first instant, first instant after) of a month such as "2026-01". Errors: ValueError."""
    year, month = int(period[:4]), int(period[5:])
    return midnight_us(date(year, month, 1), zone), midnight_us(_month_after(year, month), zone)
