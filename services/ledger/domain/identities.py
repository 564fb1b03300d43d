"""Which identities may have stood in a log before: exact for "no", a short list for "maybe".

Each accepted record's identity is kept as a 64-bit fingerprint and its
position. A Bloom filter answers nearly every new record with "never"; what is
left is looked up in sorted runs, and whoever asked compares the leaf at the
position found. So a hit costs a read, and a miss, which is the rule, costs a
few nanoseconds whatever the log's size. Memory: 16 bytes a record for the
runs and 3 to 8 for the filter.

Derived data: a pure function of the log, rebuilt from it at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ledger.domain.compiled.filters import Filter

Fingerprints = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

RUN_ENTRIES: Final = 1 << 17
"""A run of this many entries is sealed: sorted once and written away."""

FIRST_CAPACITY: Final = 1 << 20
_MOVED: Final = 2
"""Entries that move into the next filter for each that is new."""


class Run(NamedTuple):
    """Fingerprints in order, and the position of each."""

    fingerprints: Fingerprints
    positions: Positions


class SealedRun(NamedTuple):
    """The run of all accepted records at positions [start, end)."""

    start_position: int
    end_position: int
    run: Run


def fingerprints_of(identities: list[bytes]) -> Fingerprints:
    """First 8 bytes of each identity (32 bytes) as an integer."""
    return np.frombuffer(b"".join(identities), dtype="<u8").reshape(-1, 4)[:, 0].copy()


def sorted_run(fingerprints: Fingerprints, positions: Positions) -> Run:
    """Bring entries into the order of a run."""
    order = np.argsort(fingerprints, kind="stable")
    return Run(fingerprints[order], positions[order])


def _merged(runs: list[Run]) -> Run:
    return sorted_run(
        np.concatenate([run.fingerprints for run in runs]),
        np.concatenate([run.positions for run in runs]),
    )


class IdentityIndex:
    """All accepted identities of one log.

    They are in one filter, because each that is asked waits for memory. When it is half full the
    next one, twice as large, begins to be filled from the runs, a little with each batch, so that
    no batch waits for all of it; when all is in it, it takes the other's place.
    """

    def __init__(self, first_capacity: int = FIRST_CAPACITY) -> None:
        """`first_capacity`: entries that the first filter has room for; it grows from there."""
        self._first_capacity = first_capacity
        self._filter: Filter | None = None
        self._next: Filter | None = None
        self._to_move: list[Fingerprints] = []
        """What was there when `_next` was begun and is not in it yet; the last part goes first."""
        self._entries = 0
        self._runs: list[Run] = []
        self._tail: list[Run] = []
        self._tail_entries = 0
        self._sealed_to = 0

    def __len__(self) -> int:
        return self._entries

    def _remember(self, fingerprints: Fingerprints) -> None:
        """Have what was put into the runs in the filters, too."""
        # Here and not above: the compiler takes a second to import, and not all that know the
        # rules keep an index.
        from ledger.domain.compiled.filters import Filter

        self._entries += len(fingerprints)
        if self._filter is None:
            self._filter = Filter(self._first_capacity)
        self._filter.add(fingerprints)
        if self._next is not None:
            self._next.add(fingerprints)
            self._move(_MOVED * len(fingerprints))
        while True:
            if self._next is None and 2 * self._entries >= self._filter.capacity:
                self._begin_next(self._filter.capacity)
            if self._entries <= self._filter.capacity:
                return
            # More at once than the filter has room for, which no batch of a worker is.
            self._move(self._entries)

    def _begin_next(self, capacity: int) -> None:
        from ledger.domain.compiled.filters import Filter

        while capacity <= 2 * self._entries:
            capacity *= 2
        self._next = Filter(capacity)
        self._to_move = [run.fingerprints for run in (*self._runs, *self._tail)]

    def _move(self, most: int) -> None:
        """Move up to so many entries into the next filter, which is the filter when all are."""
        if self._next is None:
            return
        while self._to_move and most > 0:
            part = self._to_move.pop()
            if len(part) > most:
                self._to_move.append(part[most:])
                part = part[:most]
            self._next.add(part)
            most -= len(part)
        if not self._to_move:
            self._filter, self._next = self._next, None

    def load(self, sealed: SealedRun) -> None:
        """Take a sealed run in, as it was written away; runs come in order, without a gap."""
        if sealed.start_position != self._sealed_to or self._tail:
            raise ValueError(f"a run from {self._sealed_to} on is needed")
        # Copied, so that the loops see one kind of array and not one that is only read besides.
        run = Run(np.array(sealed.run.fingerprints), np.array(sealed.run.positions))
        self._runs.append(run)
        self._sealed_to = sealed.end_position
        self._remember(run.fingerprints)

    def add(
        self, fingerprints: Fingerprints, positions: Positions, end_position: int
    ) -> SealedRun | None:
        """Take the accepted records below `end_position` in that were not taken in before.

        Gives a run to write away when one is full.
        """
        if not len(fingerprints):
            return None
        tail = self._tail
        tail.append(sorted_run(fingerprints, positions))
        # Sizes that at least double keep a tail of single entries to a handful of parts.
        while len(tail) > 1 and len(tail[-2].positions) < 2 * len(tail[-1].positions):
            tail[-2:] = [_merged(tail[-2:])]
        self._remember(fingerprints)
        self._tail_entries += len(fingerprints)
        if self._tail_entries < RUN_ENTRIES:
            return None
        sealed = SealedRun(self._sealed_to, end_position, _merged(tail))
        self._runs.append(sealed.run)
        self._tail = []
        self._tail_entries = 0
        self._sealed_to = end_position
        return sealed

    def find(self, fingerprints: Fingerprints) -> list[tuple[int, int]]:
        """(index of the question, position) of every entry with a fingerprint asked for."""
        if self._filter is None:
            return []
        suspect = np.zeros(len(fingerprints), dtype=np.bool_)
        self._filter.look(fingerprints, suspect)
        asked = np.flatnonzero(suspect)
        if not len(asked):
            return []
        from ledger.domain.compiled.filters import lookup

        wanted = fingerprints[asked]
        found: list[tuple[int, int]] = []
        first = np.empty(len(wanted), dtype=np.int64)
        for run in (*self._runs, *self._tail):
            if not lookup(run.fingerprints, wanted, first):
                continue
            there = run.fingerprints.take(first, mode="clip") == wanted
            for hit in np.flatnonzero(there).tolist():
                end = np.searchsorted(run.fingerprints, wanted[hit], side="right")
                question = int(asked[hit])
                found.extend(
                    (question, int(position)) for position in run.positions[first[hit] : end]
                )
        return found
