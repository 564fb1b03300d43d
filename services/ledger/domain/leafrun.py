"""A run of consecutive leaves as columns: their bytes, and where each begins and ends.

What readers are served from, whatever it came out of: the database's entry
bundles or a segment's file. No object is made for a leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ledger.domain.columns import Bytes, Numbers
from ledger.domain.compiled import reading


class LeafRun(NamedTuple):
    """Leaves at positions first, first + 1, ...: leaf i is data[starts[i]:ends[i]]."""

    first: int
    data: Bytes
    starts: Numbers
    ends: Numbers

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def end(self) -> int:
        """The position after the last leaf."""
        return self.first + len(self.starts)

    def part(self, first: int, end: int) -> LeafRun:
        """The leaves at positions [first, end) of those that are here, in the same bytes."""
        low = max(first - self.first, 0)
        high = max(end - self.first, low)
        return LeafRun(self.first + low, self.data, self.starts[low:high], self.ends[low:high])

    def within(self, most_bytes: int) -> LeafRun:
        """As many leaves as fit into a number of bytes; at least one, if there is one."""
        sizes = np.cumsum(self.ends - self.starts)
        count = max(1, int(np.searchsorted(sizes, most_bytes, side="right")))
        return LeafRun(self.first, self.data, self.starts[:count], self.ends[:count])

    def leaf(self, index: int) -> bytes:
        """The bytes of one leaf."""
        return self.data[self.starts[index] : self.ends[index]].tobytes()

    def leaves(self) -> list[bytes]:
        """The bytes of each."""
        return [self.leaf(index) for index in range(len(self))]


def of_bundles(first: int, bundles: Sequence[bytes], entries: int) -> LeafRun:
    """The `entries` leaves of entry bundles, or parts of such, that follow each other.

    Errors: ValueError when lengths and bytes do not fit.
    """
    data = np.frombuffer(b"".join(bundles), dtype=np.uint8)
    starts, ends = np.empty(entries, dtype=np.int64), np.empty(entries, dtype=np.int64)
    if not reading.split(data, starts, ends):
        raise ValueError(f"the bundles from position {first} on do not hold {entries} leaves")
    return LeafRun(first, data, starts, ends)


def nothing(first: int) -> LeafRun:
    """No leaves."""
    none = np.empty(0, dtype=np.int64)
    return LeafRun(first, np.empty(0, dtype=np.uint8), none, none)
