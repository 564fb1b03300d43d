"""Clocks as a port, so that the pure core and the simulation never read the machine's."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp


class Clock(Protocol):
    """What code that needs the time is given."""

    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds that never go back, from an arbitrary start."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_us(self) -> int:
        """Read the wall clock."""
        return time.time_ns() // 1000

    def monotonic_ms(self) -> int:
        """Read the monotonic clock."""
        return time.monotonic_ns() // 1_000_000


def timestamp_of(us: int) -> Timestamp:
    """Protobuf timestamp of microseconds since the epoch."""
    seconds, rest = divmod(us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def us_of(timestamp: Timestamp) -> int:
    """Microseconds since the epoch of a protobuf timestamp, rounded down."""
    return timestamp.seconds * 1_000_000 + timestamp.nanos // 1000


def rfc3339(us: int) -> str:
    """Write an instant as RFC 3339 UTC with microseconds."""
    instant = datetime.fromtimestamp(us // 1_000_000, UTC).replace(
        microsecond=us % 1_000_000, tzinfo=None
    )
    return instant.isoformat(timespec="microseconds") + "Z"
