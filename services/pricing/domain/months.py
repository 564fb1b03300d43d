"""Calendar months by UTC: the periods that accounts are billed by.

Every instant falls in one of them, and in the same one for whoever asks: what
lies before 1970 or after 2199 counts in the first or the last month there is.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from datetime import UTC, datetime
from typing import Final

_FIRST_YEAR: Final = 1970
_LAST_YEAR: Final = 2199
MONTH: Final = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])")
EDGES_US: Final = tuple(
    int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1_000_000
    for year in range(_FIRST_YEAR, _LAST_YEAR + 1)
    for month in range(1, 13)
)[1:]
"""The first instant of every month but the first, in microseconds since the epoch."""


def month_of(at_us: int) -> str:
    """The month that an instant falls in, such as "2026-01"."""
    year, month = divmod(bisect_right(EDGES_US, at_us), 12)
    return f"{_FIRST_YEAR + year}-{month + 1:02d}"
