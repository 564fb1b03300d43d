"""A run of usage leaves, added up: groups of like events, and their counts by kind of leaf.

The loops that do it (compiled/) take seconds to load the first time. So a
process asks for them by `prepare` and goes on without until they are there;
with them or without, batch.py comes to the same.

A run is read in stretches that fit a processor's cache, each joined from its
leaves when its turn comes; what is asked of single events later is read again:
that is quicker than keeping it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kernel import leaf as leaves
from pricing.domain.applications import Applied, Placed
from pricing.domain.compiled import columns as at
from pricing.domain.compiled.columns import PADDING
from pricing.domain.identity import IDENTITY_BYTES, identity_prefix
from tollbook.ledger.v1 import ledger_pb2 as ledger

MAX_LEAVES: Final = 65_536
"""Of a run; with MAX_QUANTITIES of a leaf and MAX_QUANTITY of each no 64-bit sum overflows."""
MIN_LEAVES: Final = 32
"""Below it, one by one is as quick."""
_STRETCH_LEAVES: Final = 2_048
_FIRST_ENTRIES: Final = 4_096
_FIRST_TEXT_BYTES: Final = 1 << 20
_QUANTITIES_A_LEAF: Final = 8
"""Room that is made; what does not fit is read one by one."""
_PADDING: Final = bytes(PADDING)

Numbers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_loops: ModuleType | None = None


def prepare(only_kept: bool = False) -> None:
    """Load the compiled loops and run them once. May run in a thread.

    Takes a second, and ten more where no earlier process has compiled them; not with
    `only_kept`, which loads them if they are kept on disk, and leaves it at that else.
    """
    global _loops
    from pricing.domain.compiled import summing

    if only_kept and not summing.are_kept():
        return
    raw = leaves.encode(ledger.DISPOSITION_ACCEPTED, 0, 0, 0, b"", b"")
    nothing = Tally(summing, [raw], np.zeros_like, (), np.zeros_like)
    nothing.make_room_again()
    nothing.shapes()
    nothing.kinds()
    for _ in nothing.placed(0):
        pass
    _loops = summing


def is_ready() -> bool:
    """Whether the loops are loaded."""
    return _loops is not None


class Cell(NamedTuple):
    """What a group's events used of one kind of leaf. Indexes are of leaves in the run.

    In the order of `columns`.
    """

    kinds: int
    """The six dimensions in one number."""
    attribute_at: int
    attribute_bytes: int
    amount: int
    undelivered: int
    group: int
    first: int
    end: int


class Numbered(NamedTuple):
    """What groups have in some of their columns, or the cells' kinds of leaf, by number."""

    number_of: Numbers
    """Of each group or cell."""
    samples: Numbers
    """Of each number, the first group or cell."""


class _Stretch(NamedTuple):
    """A part of a run as it was read, until the next is read."""

    first: int
    joined: bytes
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
        minutes_of: Callable[[Numbers], Numbers] | None,
    ) -> None:
        self._loops = loops
        self._texts_end = at.OWNER_TEXTS if minutes_of is None else at.USE_TEXTS
        self._data = data
        self._segments_of = segments_of
        self._minutes_of = minutes_of
        self._bounds = np.array(context_bounds, dtype=np.int64)
        count = len(data)
        entries = min(_FIRST_ENTRIES, count * _QUANTITIES_A_LEAF)
        self._group_table = _table(entries)
        self._cell_table = _table(entries)
        # Pages that are not touched take no memory.
        self._group_texts = np.empty((count, at.USE_TEXTS), dtype=np.int64)
        self._groups = np.empty((count, at.GROUP_COLUMNS), dtype=np.int64)
        self._cells = np.empty((count * _QUANTITIES_A_LEAF, at.CELL_COLUMNS), dtype=np.int64)
        self._held = np.empty(_FIRST_TEXT_BYTES, dtype=np.uint8)
        self._counts = np.zeros(at.COUNTS, dtype=np.int64)
        self._odd: list[int] = []
        for stretch in self._stretches():
            found = np.flatnonzero(stretch.status == at.ODD)
            self._odd += (found + stretch.first).tolist()
        groups, cells, text_bytes = self._counts.tolist()
        # Read again, each would be counted twice: what is read again goes into other sums.
        self.cells: Numbers = self._cells[:cells].copy()
        """The counts of each kind of leaf of each group; see `Cell`."""
        self._rows: Numbers = self._groups[:groups].copy()
        self._text = self._held[:text_bytes].tobytes()
        self.events = int(self._rows[:, at.REQUESTS].sum())
        """How many events were read."""

    def _stretches(self) -> Iterator[_Stretch]:
        """Read the run from its beginning, and add it up."""
        count = len(self._data)
        size = min(count, _STRETCH_LEAVES)
        all_status = np.empty(size, dtype=np.uint8)
        starts = np.zeros(size + 1, dtype=np.int64)
        texts = np.empty((size, at.TEXT_COLUMNS), dtype=np.int64)
        numbers = np.empty((size, at.NUMBER_COLUMNS), dtype=np.int64)
        room = np.empty((size * _QUANTITIES_A_LEAF, at.QUANTITY_COLUMNS), dtype=np.int64)
        group_of = np.empty(size, dtype=np.int64)
        cell_of = np.empty(len(room), dtype=np.int64)
        for first in range(0, count, _STRETCH_LEAVES):
            part = self._data[first : first + _STRETCH_LEAVES]
            status = all_status[: len(part)]
            np.cumsum(
                np.fromiter(map(len, part), np.int64, len(part)), out=starts[1 : len(part) + 1]
            )
            joined = b"".join((*part, _PADDING))
            flat = np.frombuffer(joined, dtype=np.uint8)
            used = self._loops.scan(flat, starts, status, texts, numbers, room)
            plain = np.flatnonzero(status == at.PLAIN)
            self._place_in_time(numbers, plain, len(part))
            self._make_room(len(plain), used, len(joined))
            self._loops.add_up(
                flat,
                first,
                status,
                texts,
                numbers,
                room[:used],
                self._texts_end,
                self._held,
                self._group_table,
                self._group_texts,
                self._groups,
                self._cell_table,
                self._cells,
                self._counts,
                group_of,
                cell_of,
            )
            yield _Stretch(first, joined, status, texts, room[:used], group_of, cell_of[:used])

    def _place_in_time(self, numbers: Numbers, plain: Numbers, count: int) -> None:
        """Set what depends on when an event was, and on how long its context is."""
        # A slice, where all are plain as they nearly always are: it copies nothing.
        which = slice(0, count) if len(plain) == count else plain
        times_us = numbers[which, at.SECONDS] * 1_000_000 + numbers[which, at.NANOS] // 1_000
        numbers[which, at.SEGMENT] = self._segments_of(times_us)
        if self._minutes_of is not None:
            numbers[which, at.MINUTE] = self._minutes_of(times_us)
        if len(self._bounds):
            context = numbers[which, at.CONTEXT]
            numbers[which, at.BAND] = np.searchsorted(self._bounds, context, "right")

    def _make_room(self, groups: int, cells: int, text_bytes: int) -> None:
        """Keep the tables half empty, and room for texts, whatever the next stretch brings."""
        held_groups, held_cells, held_bytes = self._counts.tolist()
        if held_bytes + text_bytes + PADDING > len(self._held):
            held = np.empty(2 * (held_bytes + text_bytes) + PADDING, dtype=np.uint8)
            held[:held_bytes] = self._held[:held_bytes]
            self._held = held
        if 2 * (held_groups + groups) > len(self._group_table):
            self._group_table = _table(2 * (held_groups + groups))
            self._loops.enter_groups(
                self._held,
                self._texts_end,
                self._group_table,
                self._group_texts,
                self._groups,
                held_groups,
            )
        if 2 * (held_cells + cells) > len(self._cell_table):
            self._cell_table = _table(2 * (held_cells + cells))
            self._loops.enter_cells(self._held, self._cell_table, self._cells, held_cells)

    def make_room_again(self) -> None:
        """Make the tables anew, longer: so that the loops for it are loaded before they are due."""
        self._make_room(len(self._group_table), len(self._cell_table), 0)

    def odd(self) -> list[int]:
        """Indexes of leaves that were not read here."""
        return self._odd

    def groups(self, column: int) -> Numbers:
        """A number of each group, by its column; groups are in the order of their first events."""
        return self._rows[:, column]

    def shapes(self) -> Numbered:
        """What selects groups' prices, but for whose they are."""
        return self._numbered(0, at.SHAPE_TEXTS, at.SHAPE_NUMBERS)

    def accounts(self) -> Numbered:
        """Whose the groups are."""
        return self._numbered(at.ACCOUNT_ID, at.ACCOUNT_ID + 2, 0)

    def engines(self) -> Numbered:
        """Whose engines' the groups are."""
        return self._numbered(at.ENGINE_ID, at.ENGINE_ID + 2, 0)

    def kinds(self) -> Numbered:
        """The kinds of leaf that the cells are of."""
        number_of, samples = np.empty((2, len(self.cells)), dtype=np.int64)
        table = _table(len(self.cells))
        used = self._loops.number_kinds(self._held, table, self.cells, number_of, samples)
        return Numbered(number_of, samples[:used])

    def _numbered(self, texts_from: int, texts_end: int, numbers_end: int) -> Numbered:
        number_of, samples = np.empty((2, len(self._rows)), dtype=np.int64)
        used = self._loops.number_groups(
            self._held,
            _table(len(self._rows)),
            self._group_texts,
            self._rows,
            texts_from,
            texts_end,
            numbers_end,
            number_of,
            samples,
        )
        return Numbered(number_of, samples[:used])

    def texts(self, column: int, groups: Numbers | None = None) -> list[str]:
        """A text of each group, or of some, by its column, before USE_TEXTS or OWNER_TEXTS."""
        which = slice(0, len(self._rows)) if groups is None else groups
        places = self._group_texts[which, column : column + 2].tolist()
        text = self._text
        return [text[start : start + length].decode("ascii") for start, length in places]

    def written(self, groups: Numbers) -> list[bytes]:
        """What selects some groups' prices, in bytes: others if and only if it is another.

        The lengths of the texts, the numbers, and the texts, which stand one after the other.
        """
        texts = self._group_texts[groups, : at.SHAPE_TEXTS]
        heads = np.hstack((texts[:, 1::2], self._rows[groups, : at.SHAPE_NUMBERS])).tobytes()
        width = len(heads) // max(len(groups), 1)
        return [
            heads[row * width : (row + 1) * width] + self._text[start:end]
            for row, (start, end) in enumerate(
                zip(texts[:, 0].tolist(), (texts[:, -2] + texts[:, -1]).tolist(), strict=True)
            )
        ]

    def attribute(self, start: int, length: int) -> bytes:
        """The attribute of a cell's leaves, by the cell's `attribute_at` and `attribute_bytes`."""
        return self._text[start : start + length]

    def quantities_of(self, cells: Sequence[int]) -> dict[int, list[tuple[int, int, int]]]:
        """The single quantities of some cells: (index of the event, amount, undelivered)."""
        found: dict[int, list[tuple[int, int, int]]] = {cell: [] for cell in cells}
        if not found:
            return found
        wanted = np.zeros(len(self.cells) + 1, dtype=np.bool_)
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

    def applied(self, first_position: int) -> Iterator[Applied]:
        """Every event that was read, in order."""
        account_ids = self.texts(at.ACCOUNT_ID)
        for stretch in self._stretches():
            joined = stretch.joined
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

    def placed(self, first_position: int) -> Iterator[Placed]:
        """Where every event that was read stands."""
        prefixes, starts = _side_by_side(
            [identity_prefix(account_id) for account_id in self.texts(at.ACCOUNT_ID)]
        )
        prefix_bytes = np.diff(starts)
        for stretch in self._stretches():
            plain = np.flatnonzero(stretch.status == at.PLAIN)
            places = np.zeros(len(plain) + 1, dtype=np.int64)
            lengths = prefix_bytes[stretch.group_of[plain]]
            np.cumsum(lengths + stretch.texts[plain, at.EVENT_ID + 1], out=places[1:])
            joined = np.frombuffer(stretch.joined, dtype=np.uint8)
            text = np.empty(places[-1], dtype=np.uint8)
            self._loops.write_identities(
                joined, stretch.texts, plain, stretch.group_of, prefixes, starts, places, text
            )
            hashes = self._loops.hash_slices(text, places[:-1], places[1:])
            yield Placed(plain + (first_position + stretch.first), hashes[:, :IDENTITY_BYTES])


def tally(
    data: Sequence[bytes],
    segments_of: Callable[[Numbers], Numbers],
    context_bounds: Sequence[int],
    minutes_of: Callable[[Numbers], Numbers] | None,
) -> Tally:
    """Add up a run of at most MAX_LEAVES leaves. Errors: ValueError for more, or before `prepare`.

    `segments_of` gives numbers of the stretches of time that instants in
    microseconds fall in; `context_bounds` are context lengths, in order, from
    which on prices may differ. `minutes_of` gives the minute of instants; with it groups are
    of one minute, key and project too.
    """
    if _loops is None:
        raise ValueError("prepare() was not called")
    if len(data) > MAX_LEAVES:
        raise ValueError(f"{len(data)} leaves are more than {MAX_LEAVES}")
    return Tally(_loops, data, segments_of, context_bounds, minutes_of)


def _table(entries: int) -> Numbers:
    """An empty hash table for so many entries, at most half full."""
    return np.full(1 << (2 * entries + 1).bit_length(), -1, dtype=np.int64)


def _side_by_side(texts: Sequence[bytes]) -> tuple[Bytes, Numbers]:
    """Texts in one buffer, and where each begins; one place more is the end of the last."""
    starts = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=starts[1:])
    return np.frombuffer(b"".join(texts), dtype=np.uint8), starts
