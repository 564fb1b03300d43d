"""Windows of spend limits, held against the zone's own calendar, where clocks are changed too."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.domain import windows

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "America/Sao_Paulo",  # once changed its clocks at midnight
    "Pacific/Apia",  # once left a day out
    "Asia/Kathmandu",
)
instants = st.integers(0, 4_102_444_800_000_000)
zones = st.sampled_from(ZONES)


def at(text: str, zone: str) -> int:
    return windows.instant_us(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)))


@given(instants, zones, st.sampled_from(windows.WINDOWS))
def test_a_window_is_named_by_an_instant_of_itself_and_began_before(
    at_us: int, zone: str, window: str
) -> None:
    start_us = windows.window_start_us(window, zone, at_us)
    assert start_us <= at_us
    assert start_us % windows.MINUTE_US == 0
    # Where a day begins in a gap or twice, its name may be an instant of another offset, but it is
    # the same for every instant of the day.
    minute_us = at_us // windows.MINUTE_US * windows.MINUTE_US
    assert windows.window_start_us(window, zone, minute_us) == start_us


@given(instants, zones)
def test_two_instants_share_a_day_a_week_or_a_month_as_the_zones_calendar_says(
    at_us: int, zone: str
) -> None:
    def clock(us: int) -> datetime:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).astimezone(
            ZoneInfo(zone)
        )

    for step_h in (1, 23, 24, 25, 24 * 6, 24 * 20):
        other_us = at_us + step_h * 3_600_000_000
        one, other = clock(at_us), clock(other_us)
        for window, same in (
            (windows.DAY, one.date() == other.date()),
            (windows.WEEK, one.isocalendar()[:2] == other.isocalendar()[:2]),
            (windows.MONTH, (one.year, one.month) == (other.year, other.month)),
        ):
            starts = {windows.window_start_us(window, zone, us) for us in (at_us, other_us)}
            assert (len(starts) == 1) == same


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)]
)
def test_a_day_lasts_as_long_as_its_clock_says(day: str, hours: int) -> None:
    zone = "Europe/Berlin"
    start_us = at(f"{day}T00:00:00", zone)
    end_us = start_us + hours * 3_600_000_000
    assert windows.window_start_us(windows.DAY, zone, end_us - 1) == start_us
    assert windows.window_start_us(windows.DAY, zone, end_us) == end_us


@pytest.mark.parametrize(
    ("zone", "minutes"), [("UTC", 0), ("Asia/Kolkata", 30), ("Asia/Kathmandu", 15)]
)
def test_an_hour_begins_by_the_zones_own_clock(zone: str, minutes: int) -> None:
    noon_us = at("2026-06-01T12:00:00", zone)
    assert windows.window_start_us(windows.HOUR, zone, noon_us) == noon_us
    assert windows.window_start_us(windows.HOUR, zone, noon_us - 1) == noon_us - 3_600_000_000
    assert noon_us // windows.MINUTE_US % 60 == minutes


def test_the_hour_that_comes_twice_is_two_windows() -> None:
    zone = "America/New_York"
    first_us = at("2026-11-01T01:30:00", zone)
    again_us = first_us + 3_600_000_000
    starts = {windows.window_start_us(windows.HOUR, zone, us) for us in (first_us, again_us)}
    assert len(starts) == 2
    assert windows.window_start_us(windows.DAY, zone, first_us) == windows.window_start_us(
        windows.DAY, zone, again_us
    )


@given(st.integers(2000, 2090), st.integers(1, 12), zones)
def test_months_follow_one_another_without_a_gap(year: int, month: int, zone: str) -> None:
    first, end = windows.month_bounds_us(f"{year}-{month:02}", zone)
    following = (year + month // 12, month % 12 + 1)
    assert windows.month_bounds_us(f"{following[0]}-{following[1]:02}", zone)[0] == end
    assert windows.window_start_us(windows.MONTH, zone, first) == first
    assert windows.window_start_us(windows.MONTH, zone, end - 1) == first


@given(st.integers(-(2**70), 2**70), zones, st.sampled_from(windows.WINDOWS))
def test_no_instant_whatever_stops_it(at_us: int, zone: str, window: str) -> None:
    windows.window_start_us(window, zone, windows.minute_us(at_us))


def test_a_zone_that_is_none_is_named() -> None:
    assert windows.zone_problem("Europe/Berlin") is None
    assert windows.zone_problem("") is None
    for name in ("Mars/Olympus", "../etc/passwd", "\0", "/etc/localtime", "localtime", "x" * 5_000):
        assert windows.zone_problem(name)


def test_a_zone_is_what_the_pinned_data_say_whatever_the_machine_has(tmp_path: Path) -> None:
    """Two machines with other zone files have the same windows: limits and bills go by them."""
    (tmp_path / "Asia").mkdir()
    tokyo = resources.files("tzdata").joinpath("zoneinfo", "Asia", "Tokyo").read_bytes()
    (tmp_path / "Asia" / "Tehran").write_bytes(tokyo)
    (tmp_path / "Here").write_bytes(tokyo)
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([str(tmp_path)])
    ZoneInfo.clear_cache()
    try:
        new_year = datetime(2026, 1, 1, tzinfo=ZoneInfo("Asia/Tehran"))
        assert new_year.utcoffset() == timedelta(hours=9)
        noon_us = windows.instant_us(datetime(2026, 1, 1, 12, tzinfo=UTC))
        assert windows.local(noon_us, "Asia/Tehran").utcoffset() == timedelta(hours=3.5)
        assert windows.zone_problem("Here")
    finally:
        zoneinfo.reset_tzpath(before)
        ZoneInfo.clear_cache()


all_zones = st.sampled_from(
    sorted(name for name in available_timezones() if not windows.zone_problem(name))
)


@given(
    st.integers(946_684_800_000_000, 2_524_608_000_000_000),
    st.one_of(zones, all_zones),
    st.sampled_from(windows.WINDOWS[:-1]),
    st.lists(st.integers(-30 * 3_600_000_000, 30 * 3_600_000_000), max_size=12),
)
def test_a_stretch_is_all_of_a_window_and_nothing_else(
    at_us: int, zone: str, window: str, near: list[int]
) -> None:
    stretch = windows.stretch_of(window, zone, at_us)
    if stretch is None:
        return
    start_us, end_us = stretch
    assert start_us == windows.window_start_us(window, zone, at_us)
    assert start_us <= at_us < end_us
    edges = (start_us, start_us - 1, end_us, end_us - 1)
    for other_us in (*edges, *(edge + way for edge in edges for way in near)):
        is_in = windows.window_start_us(window, zone, max(0, other_us)) == start_us
        assert is_in == (start_us <= max(0, other_us) < end_us), other_us


def test_a_stretch_is_told_but_near_a_change_of_clocks() -> None:
    zone = "Europe/Berlin"
    day = at("2026-03-28T12:00", zone)
    month = at("2026-03-01", zone), at("2026-04-01", zone)
    assert windows.stretch_of(windows.MONTH, zone, day) == month
    assert windows.stretch_of(windows.WEEK, zone, day) == (
        at("2026-03-23", zone),
        at("2026-03-30", zone),
    )
    # Clocks go on at two in the next night, so near an edge of both days.
    assert windows.stretch_of(windows.DAY, zone, day) is None
    assert windows.stretch_of(windows.DAY, zone, day + 86_400_000_000) is None
    friday = at("2026-03-27", zone), at("2026-03-28", zone)
    assert windows.stretch_of(windows.DAY, zone, friday[0]) == friday
    assert windows.stretch_of(windows.EVER, zone, day) == (0, 2**63 - 1)
