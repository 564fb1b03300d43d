"""A run of usage leaves, added up: groups of like events, and their counts by kind of leaf.

The loops that do it (loops.py) take seconds to load the first time. So a
process asks for them by `prepare` and goes on without until they are there;
with them or without, batch.py comes to the same.

A run is read in stretches that fit a processor's cache, and what is asked of
single events later is read again: that is quicker than keeping it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kernel import leaf as leaves
from pricing.domain.identity import digest_of, identity_prefix
from pricing.domain.state import Applied
from tollbook.ledger.v1 import ledger_pb2 as ledger

MAX_LEAVES: Final = 65_536
"""Of a run; with MAX_QUANTITIES of a leaf and MAX_QUANTITY of each no 64-bit sum overflows."""
MIN_LEAVES: Final = 256
"""Below it, one by one is as quick."""
_STRETCH_LEAVES: Final = 2_048
_FIRST_ENTRIES: Final = 4_096
_QUANTITIES_A_LEAF: Final = 8
"""Room that is made; what does not fit is read one by one."""

Numbers = npt.NDArray[np.int64]

_loops: ModuleType | None = None


def prepare() -> None:
    """Load the compiled loops and run them once. Takes seconds; may run in a thread."""
    global _loops
    from pricing.domain import loops

    raw = leaves.encode(ledger.DISPOSITION_ACCEPTED, 0, 0, 0, b"", b"")
    Tally(loops, [raw], np.zeros_like, (), True)
    _loops = loops


def is_ready() -> bool:
    """Whether the loops are loaded."""
    return _loops is not None


class Group(NamedTuple):
    """Events that are alike in all that selects a price."""

    sample: int
    """Index of the first of them in the run."""
    requests: int


class Cell(NamedTuple):
    """What a group's events used of one kind of leaf. Indexes are of leaves in the run."""

    group: int
    dimensions: tuple[int, int, int, int, int, int, str]
    amount: int
    undelivered: int
    first: int
    end: int


class _Stretch(NamedTuple):
    """A part of a run as it was read, until the next is read."""

    first: int
    status: npt.NDArray[np.uint8]
    texts: Numbers
    quantities: Numbers
    group_of: Numbers
    cell_of: Numbers


class Tally:
    """A run, added up."""

    def __init__(
        self,
        loops: Any,
        data: Sequence[bytes],
        segments_of: Callable[[Numbers], Numbers],
        context_bounds: Sequence[int],
        by_key: bool,
    ) -> None:
        self._loops = loops
        self._texts_end = loops.TRACE_ID if by_key else loops.PROJECT_ID
        count = len(data)
        self._joined = b"".join(data)
        self._starts = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, data), dtype=np.int64, count=count), out=self._starts[1:])
        self._segments_of = segments_of
        self._bounds = np.array(context_bounds, dtype=np.int64)
        room = count * _QUANTITIES_A_LEAF
        self._group_table = _table(_FIRST_ENTRIES)
        self._cell_table = _table(_FIRST_ENTRIES)
        # Pages that are not touched take no memory.
        self._group_texts = np.empty((count, loops.TEXT_COLUMNS), dtype=np.int64)
        self._groups = np.empty((count, loops.GROUP_COLUMNS), dtype=np.int64)
        self._cells = np.empty((room, loops.CELL_COLUMNS), dtype=np.int64)
        self._counts = np.zeros(2, dtype=np.int64)
        self._odd: list[int] = []
        for stretch in self._stretches():
            found = np.flatnonzero(stretch.status == loops.ODD)
            self._odd += (found + stretch.first).tolist()
        # Read again, each would be counted twice: what is read again goes into a copy's sums.
        self._sums = self._cells[: self._counts[1]].copy()
        self._requests = self._groups[: self._counts[0]].copy()
        self.events = int(self._requests[:, loops.GROUP_REQUESTS].sum())
        """How many events were read."""

    def _stretches(self) -> Iterator[_Stretch]:
        """Read the run from its beginning, and add it up."""
        at = self._loops
        count = len(self._starts) - 1
        flat = np.frombuffer(self._joined, dtype=np.uint8)
        size = min(count, _STRETCH_LEAVES)
        all_status = np.empty(size, dtype=np.uint8)
        texts = np.empty((size, at.TEXT_COLUMNS), dtype=np.int64)
        numbers = np.empty((size, at.NUMBER_COLUMNS), dtype=np.int64)
        room = np.empty((size * _QUANTITIES_A_LEAF, at.QUANTITY_COLUMNS), dtype=np.int64)
        group_of = np.empty(size, dtype=np.int64)
        cell_of = np.empty(len(room), dtype=np.int64)
        for first in range(0, count, _STRETCH_LEAVES):
            status = all_status[: min(_STRETCH_LEAVES, count - first)]
            used = at.scan(flat, self._starts, first, status, texts, numbers, room)
            plain = np.flatnonzero(status == at.PLAIN)
            rows = numbers[plain]
            times_us = rows[:, at.SECONDS] * 1_000_000 + rows[:, at.NANOS] // 1_000
            numbers[plain, at.SEGMENT] = self._segments_of(times_us)
            numbers[plain, at.BAND] = np.searchsorted(self._bounds, rows[:, at.CONTEXT], "right")
            self._make_room(flat, len(plain), used)
            at.add_up(
                flat,
                first,
                status,
                texts,
                numbers,
                room[:used],
                self._texts_end,
                self._group_table,
                self._group_texts,
                self._groups,
                self._cell_table,
                self._cells,
                self._counts,
                group_of,
                cell_of,
            )
            yield _Stretch(first, status, texts, room[:used], group_of, cell_of[:used])

    def _make_room(self, flat: Any, groups: int, cells: int) -> None:
        """Keep the tables half empty, whatever the next stretch brings."""
        held_groups, held_cells = self._counts.tolist()
        if 2 * (held_groups + groups) > len(self._group_table):
            self._group_table = _table(2 * (held_groups + groups))
            self._loops.enter_groups(
                flat,
                self._texts_end,
                self._group_table,
                self._group_texts,
                self._groups,
                held_groups,
            )
        if 2 * (held_cells + cells) > len(self._cell_table):
            self._cell_table = _table(2 * (held_cells + cells))
            self._loops.enter_cells(flat, self._cell_table, self._cells, held_cells)

    def odd(self) -> list[int]:
        """Indexes of leaves that were not read here."""
        return self._odd

    def groups(self) -> Iterator[Group]:
        """All groups, in the order of their first events."""
        at = self._loops
        columns = self._requests[:, [at.GROUP_SAMPLE, at.GROUP_REQUESTS]]
        for sample, requests in columns.tolist():
            yield Group(sample, requests)

    def cells(self) -> Iterator[Cell]:
        """All cells, in the order of their first quantities."""
        for group, kinds, at, length, amount, undelivered, first, end in self._sums.tolist():
            dimensions = (
                kinds >> 20 & 15,
                kinds >> 16 & 15,
                kinds >> 12 & 15,
                kinds >> 8 & 15,
                kinds >> 4 & 15,
                kinds & 15,
                self._joined[at : at + length].decode("ascii"),
            )
            yield Cell(group, dimensions, amount, undelivered, first, end)

    def quantities_of(self, cells: Sequence[int]) -> dict[int, list[tuple[int, int, int]]]:
        """The single quantities of some cells: (index of the event, amount, undelivered)."""
        found: dict[int, list[tuple[int, int, int]]] = {cell: [] for cell in cells}
        if not found:
            return found
        at = self._loops
        wanted = np.zeros(len(self._sums) + 1, dtype=np.bool_)
        wanted[list(found)] = True
        for stretch in self._stretches():
            # -1, of a count of 0, is the last, which nobody wants.
            rows = np.flatnonzero(wanted[stretch.cell_of])
            for cell, owner, amount, undelivered in zip(
                stretch.cell_of[rows].tolist(),
                (stretch.quantities[rows, at.OWNER] + stretch.first).tolist(),
                stretch.quantities[rows, at.AMOUNT].tolist(),
                stretch.quantities[rows, at.UNDELIVERED].tolist(),
                strict=True,
            ):
                found[cell].append((owner, amount, undelivered))
        return found

    def applied(self, first_position: int, account_ids: Sequence[str]) -> Iterator[Applied]:
        """Every event that was read, in order; `account_ids` are the groups'."""
        at = self._loops
        joined = self._joined
        for stretch in self._stretches():
            plain = np.flatnonzero(stretch.status == at.PLAIN)
            texts = stretch.texts[plain]
            for index, group, event_at, event_end, trace_at, trace_end, span_at, span_end in zip(
                plain.tolist(),
                stretch.group_of[plain].tolist(),
                *(
                    column.tolist()
                    for start in (at.EVENT_ID, at.TRACE_ID, at.SPAN_ID)
                    for column in (texts[:, start], texts[:, start] + texts[:, start + 1])
                ),
                strict=True,
            ):
                yield Applied(
                    first_position + stretch.first + index,
                    account_ids[group],
                    joined[event_at:event_end].decode("ascii"),
                    joined[trace_at:trace_end],
                    joined[span_at:span_end],
                )

    def places(
        self, first_position: int, account_ids: Sequence[str]
    ) -> Iterator[tuple[int, bytes]]:
        """(position, identity) of every event that was read; `account_ids` are the groups'."""
        at = self._loops
        joined = self._joined
        prefixes = [identity_prefix(account_id) for account_id in account_ids]
        for stretch in self._stretches():
            plain = np.flatnonzero(stretch.status == at.PLAIN)
            starts = stretch.texts[plain, at.EVENT_ID]
            ends = starts + stretch.texts[plain, at.EVENT_ID + 1]
            for position, group, start, end in zip(
                (plain + (first_position + stretch.first)).tolist(),
                stretch.group_of[plain].tolist(),
                starts.tolist(),
                ends.tolist(),
                strict=True,
            ):
                yield position, digest_of(prefixes[group] + joined[start:end])


def tally(
    data: Sequence[bytes],
    segments_of: Callable[[Numbers], Numbers],
    context_bounds: Sequence[int],
    by_key: bool,
) -> Tally:
    """Add up a run of at most MAX_LEAVES leaves. Errors: ValueError for more, or before `prepare`.

    `segments_of` gives numbers of the stretches of time that instants in
    microseconds fall in; `context_bounds` are context lengths, in order, from
    which on prices may differ. `by_key`: groups are of one key and project too.
    """
    if _loops is None:
        raise ValueError("prepare() was not called")
    if len(data) > MAX_LEAVES:
        raise ValueError(f"{len(data)} leaves are more than {MAX_LEAVES}")
    return Tally(_loops, data, segments_of, context_bounds, by_key)


def _table(entries: int) -> Numbers:
    """An empty hash table for so many entries, at most half full."""
    return np.full(1 << (2 * entries + 1).bit_length(), -1, dtype=np.int64)
