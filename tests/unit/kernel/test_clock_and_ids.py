"""Instants to the microsecond, and ids that sort by the time of minting."""

from __future__ import annotations

import uuid

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from kernel import clock, ids

# The range of protobuf's Timestamp: years 1 to 9999.
INSTANTS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)


@given(INSTANTS)
def test_an_instant_survives_the_wire(us: int) -> None:
    stamp = clock.timestamp_of(us)
    assert 0 <= stamp.nanos < 10**9
    assert clock.us_of(stamp) == us
    assert clock.us_of(Timestamp.FromString(stamp.SerializeToString())) == us


@given(INSTANTS)
def test_rfc3339_reads_back_as_the_same_instant(us: int) -> None:
    text = clock.rfc3339(us)
    assert len(text) == len("2026-01-31T00:00:00.000000Z")
    stamp = Timestamp()
    stamp.FromJsonString(text)
    assert clock.us_of(stamp) == us


def test_nanoseconds_are_rounded_down() -> None:
    assert clock.us_of(Timestamp(seconds=1, nanos=999)) == 1_000_000
    assert clock.us_of(Timestamp(seconds=-1, nanos=999_999_999)) == -1


def test_the_systems_clocks_go_forward() -> None:
    system = clock.SystemClock()
    assert system.now_us() > 1_700_000_000_000_000
    first = system.monotonic_ms()
    assert system.monotonic_ms() >= first


def test_ids_are_uuid7_sort_by_time_and_do_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000_000

    def at(ms: int) -> str:
        monkeypatch.setattr("kernel.ids.time.time_ns", lambda: ms * 1_000_000)
        return ids.new_id("req")

    minted = [at(now + step) for step in range(500)]
    assert minted == sorted(minted)
    parsed = uuid.UUID(minted[3].removeprefix("req-"))
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == now + 3
    assert len({at(now) for _ in range(500)}) == 500
