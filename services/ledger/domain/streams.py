"""Producer streams: which sequence numbers stood in the log, and which are missing.

Exact and small: the highest number and the ranges below it that never came.
"""

from __future__ import annotations

import bisect
from typing import Final

MAX_MISSING_RANGES: Final = 1_024


class StreamOverflowError(ValueError):
    """A number that would open one missing range too many."""


class StreamState:
    """What came of one producer's stream."""

    __slots__ = ("closed_seq", "missing", "next_seq")

    def __init__(
        self,
        next_seq: int = 0,
        missing: list[tuple[int, int]] | None = None,
        closed_seq: int | None = None,
    ) -> None:
        self.next_seq = next_seq
        self.missing = missing if missing is not None else []
        """Ranges [first, end) that never came, in order, all below next_seq."""
        self.closed_seq = closed_seq
        """The number of the closing record, once it came."""

    def note(self, seq: int) -> bool:
        """Take a number in; True when it had not come before.

        Errors: StreamOverflowError; nothing is changed then.
        """
        if seq == self.next_seq:
            self.next_seq = seq + 1
            return True
        missing = self.missing
        if seq > self.next_seq:
            if len(missing) >= MAX_MISSING_RANGES:
                raise StreamOverflowError
            missing.append((self.next_seq, seq))
            self.next_seq = seq + 1
            return True
        at = bisect.bisect_right(missing, seq, key=lambda part: part[0]) - 1
        if at < 0 or seq >= missing[at][1]:
            return False
        first, end = missing[at]
        parts = [part for part in ((first, seq), (seq + 1, end)) if part[0] < part[1]]
        if len(missing) + len(parts) - 1 > MAX_MISSING_RANGES:
            raise StreamOverflowError
        missing[at : at + 1] = parts
        return True
