"""A run of usage leaves, added up: groups of like events, and their counts by kind of leaf.

The loops that do it (loops.py) take seconds to load the first time. So a
process asks for them by `prepare` and goes on without until they are there;
with them or without, batch.py comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kernel import leaf as leaves
from pricing.domain.state import Applied
from tollbook.ledger.v1 import ledger_pb2 as ledger

MAX_LEAVES: Final = 65_536
"""Of a run; with MAX_QUANTITIES of a leaf and MAX_QUANTITY of each no 64-bit sum overflows."""
MIN_LEAVES: Final = 256
"""Below it, one by one is as quick."""
_QUANTITIES_A_LEAF: Final = 8
"""Room that is made; what does not fit is read one by one."""

Numbers = npt.NDArray[np.int64]

_loops: ModuleType | None = None


def prepare() -> None:
    """Load the compiled loops and run them once. Takes seconds; may run in a thread."""
    global _loops
    from pricing.domain import loops

    raw = leaves.encode(ledger.DISPOSITION_ACCEPTED, 0, 0, 0, b"", b"")
    _tally(loops, [raw], np.zeros_like, ())
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


class Tally:
    """A run, added up."""

    def __init__(
        self,
        loops: Any,
        joined: bytes,
        status: npt.NDArray[np.uint8],
        texts: Numbers,
        numbers: Numbers,
        quantities: Numbers,
        groups: Numbers,
        cells: tuple[Numbers, Numbers],
    ) -> None:
        self._loops = loops
        self._joined = joined
        self._status = status
        self._texts = texts
        self._numbers = numbers
        self._quantities = quantities
        self._groups = groups
        self._cells = cells
        self._by_cell: tuple[Numbers, Numbers] | None = None

    def odd(self) -> list[int]:
        """Indexes of leaves that were not read here."""
        found: list[int] = np.flatnonzero(self._status == self._loops.ODD).tolist()
        return found

    def groups(self) -> Iterator[Group]:
        """All groups, in the order of their first events."""
        for sample, requests in self._groups.tolist():
            yield Group(sample, requests)

    def cells(self) -> Iterator[Cell]:
        """All cells, in the order of their first quantities."""
        sample_rows, sums = self._cells
        owner, group = self._loops.OWNER, self._loops.GROUP
        attribute = self._loops.ATTRIBUTE
        for row, (amount, undelivered, first, end) in zip(
            self._quantities[sample_rows].tolist(), sums.tolist(), strict=True
        ):
            unit, direction, modality, cache_use, cache_ttl, token_kind = row[:attribute]
            text = self._text(row[attribute], row[attribute + 1])
            yield Cell(
                int(self._numbers[row[owner], group]),
                (unit, direction, modality, cache_use, cache_ttl, token_kind, text),
                amount,
                undelivered,
                first,
                end,
            )

    def events_of(self, cells: Sequence[int]) -> list[int]:
        """Indexes of the events that have a quantity in one of these cells, in order."""
        if not cells:
            return []
        column = self._quantities[:, self._loops.CELL]
        rows = self._quantities[np.isin(column, np.array(cells, dtype=np.int64))]
        found: list[int] = np.unique(rows[:, self._loops.OWNER]).tolist()
        return found

    def counts_of(self, cell: int) -> list[tuple[int, int, int]]:
        """(amount, undelivered, how often) of a cell's single quantities."""
        rows = self._rows_of(cell)
        at = self._loops
        pairs = self._quantities[rows][:, [at.AMOUNT, at.UNDELIVERED]]
        found, times = np.unique(pairs, axis=0, return_counts=True)
        return [
            (amount, undelivered, often)
            for (amount, undelivered), often in zip(found.tolist(), times.tolist(), strict=True)
        ]

    def owners_of(self, cell: int) -> list[int]:
        """Indexes of the events with a quantity in a cell, in order, each once."""
        found: list[int] = np.unique(
            self._quantities[self._rows_of(cell), self._loops.OWNER]
        ).tolist()
        return found

    def _rows_of(self, cell: int) -> Numbers:
        if self._by_cell is None:
            column = self._quantities[:, self._loops.CELL]
            order = np.argsort(column, kind="stable")
            self._by_cell = order, column[order]
        order, sorted_cells = self._by_cell
        first, end = np.searchsorted(sorted_cells, [cell, cell + 1])
        return order[first:end]

    def applied(self, first_position: int, account_ids: Sequence[str]) -> Iterator[Applied]:
        """Every event that was read, in order; `account_ids` are the groups'."""
        at = self._loops
        plain = np.flatnonzero(self._status == at.PLAIN)
        texts = self._texts[plain]
        joined = self._joined
        for index, group, event_at, event_end, trace_at, trace_end, span_at, span_end in zip(
            plain.tolist(),
            self._numbers[plain, at.GROUP].tolist(),
            *(
                column.tolist()
                for start in (at.EVENT_ID, at.TRACE_ID, at.SPAN_ID)
                for column in (texts[:, start], texts[:, start] + texts[:, start + 1])
            ),
            strict=True,
        ):
            yield Applied(
                first_position + index,
                account_ids[group],
                joined[event_at:event_end].decode("ascii"),
                joined[trace_at:trace_end],
                joined[span_at:span_end],
            )

    def _text(self, at: int, length: int) -> str:
        return self._joined[at : at + length].decode("ascii")


def tally(
    data: Sequence[bytes], segments_of: Callable[[Numbers], Numbers], context_bounds: Sequence[int]
) -> Tally:
    """Add up a run of at most MAX_LEAVES leaves. Errors: ValueError for more, or before `prepare`.

    `segments_of` gives numbers of the stretches of time that instants in
    microseconds fall in; `context_bounds` are context lengths, in order, from
    which on prices may differ.
    """
    if _loops is None:
        raise ValueError("prepare() was not called")
    if len(data) > MAX_LEAVES:
        raise ValueError(f"{len(data)} leaves are more than {MAX_LEAVES}")
    return _tally(_loops, data, segments_of, context_bounds)


def _tally(
    loops: Any,
    data: Sequence[bytes],
    segments_of: Callable[[Numbers], Numbers],
    context_bounds: Sequence[int],
) -> Tally:
    count = len(data)
    joined = b"".join(data)
    flat = np.frombuffer(joined, dtype=np.uint8)
    starts = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, data), dtype=np.int64, count=count), out=starts[1:])
    status = np.empty(count, dtype=np.uint8)
    texts = np.empty((count, loops.TEXT_COLUMNS), dtype=np.int64)
    numbers = np.empty((count, loops.NUMBER_COLUMNS), dtype=np.int64)
    room = np.empty((count * _QUANTITIES_A_LEAF, loops.QUANTITY_COLUMNS), dtype=np.int64)
    used = loops.scan(flat, starts, status, texts, numbers, room)
    quantities = room[:used]
    plain = status == loops.PLAIN
    times_us = numbers[plain, loops.SECONDS] * 1_000_000 + numbers[plain, loops.NANOS] // 1_000
    numbers[plain, loops.SEGMENT] = segments_of(times_us)
    bounds = np.array(context_bounds, dtype=np.int64)
    numbers[plain, loops.BAND] = np.searchsorted(bounds, numbers[plain, loops.CONTEXT], "right")
    group_sample = np.empty(count, dtype=np.int64)
    group_requests = np.empty(count, dtype=np.int64)
    cell_sample = np.empty(used, dtype=np.int64)
    sums = np.empty((used, 4), dtype=np.int64)
    groups, cells = loops.add_up(
        flat,
        status,
        texts,
        numbers,
        quantities,
        _table(count),
        group_sample,
        group_requests,
        _table(used),
        cell_sample,
        sums,
    )
    return Tally(
        loops,
        joined,
        status,
        texts,
        numbers,
        quantities,
        np.stack((group_sample[:groups], group_requests[:groups]), axis=1),
        (cell_sample[:cells], sums[:cells]),
    )


def _table(entries: int) -> Numbers:
    """An empty hash table for so many entries, at most half full."""
    return np.full(1 << (2 * entries + 1).bit_length(), -1, dtype=np.int64)
