"""Which log an account's usage goes to: the one rule producers and readers share.

An account's events stand in one log, so that its balance has one order. A
record once spooled keeps its partition for ever: a resend never moves.
"""

from __future__ import annotations

import hashlib
from typing import Final

CONTROL_LOG: Final = "control"
CUT_LOG: Final = "cuts"
_USAGE_PREFIX: Final = "usage-"


def partition_of(account_id: str, partitions: int) -> int:
    """Partition of an account's usage events: 0 <= result < partitions."""
    digest = hashlib.sha256(account_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % partitions


def usage_log(partition: int) -> str:
    """Name of a partition's log."""
    return f"{_USAGE_PREFIX}{partition}"


def partition_of_log(log: str) -> int | None:
    """Partition of a usage log, or None for another log."""
    number = log.removeprefix(_USAGE_PREFIX)
    if number == log or not (number.isascii() and number.isdecimal()):
        return None
    # One log, one name: usage-07 and usage-7 would be two names for one partition.
    return int(number) if number == "0" or number[0] != "0" else None
