"""Which identities may have stood in a log before: exact for "no", a short list for "maybe".

Each accepted record's identity is kept as a 64-bit fingerprint and its
position. A Bloom filter answers nearly every new record with "never"; what is
left is looked up in sorted runs, and whoever asked compares the leaf at the
position found. So a hit costs a read, and a miss, which is the rule, costs a
few nanoseconds whatever the log's size. Memory: 12 bytes a record for the
runs and 2 for the filters.

Derived data: a pure function of the log, rebuilt from it at any time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Fingerprints = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

RUN_ENTRIES: Final = 1 << 17
"""A run of this many entries is sealed: sorted once and written away."""

_FIRST_CAPACITY: Final = 1 << 20
_GROWTH: Final = 4
"""Each filter holds so many times what the one before it holds: a question asks few of them."""
_BITS_PER_ENTRY: Final = 16
_PROBES: Final = 6
_BIT: Final = np.left_shift(1, np.arange(8)).astype(np.uint8)


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


class _Filter:
    """A Bloom filter of fixed capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries = 0
        bits = capacity * _BITS_PER_ENTRY
        self._mask = np.uint64(bits - 1)
        self._words = np.zeros(bits // 8, dtype=np.uint8)

    def _probes(self, fingerprints: Fingerprints) -> list[tuple[npt.NDArray[np.intp], Positions]]:
        step = (fingerprints >> np.uint64(32)) | np.uint64(1)
        found = []
        at = fingerprints
        for _ in range(_PROBES):
            bit = at & self._mask
            word = (bit >> np.uint64(3)).astype(np.intp)
            found.append((word, np.left_shift(1, (bit & np.uint64(7)).astype(np.int64))))
            at = at + step
        return found

    def add(self, fingerprints: Fingerprints) -> None:
        """Put entries in."""
        self.entries += len(fingerprints)
        for word, bit in self._probes(fingerprints):
            np.bitwise_or.at(self._words, word, bit.astype(np.uint8))

    def held(self, fingerprints: Fingerprints) -> npt.NDArray[np.intp]:
        """Which of them may have been put in; the others never were."""
        step = (fingerprints >> np.uint64(32)) | np.uint64(1)
        left: npt.NDArray[np.intp] = np.arange(len(fingerprints))
        at = fingerprints
        for _ in range(_PROBES):
            bit = at & self._mask
            word = self._words.take((bit >> np.uint64(3)).view(np.int64))
            hit = np.flatnonzero(word & _BIT.take((bit & np.uint64(7)).view(np.int64)))
            left = left.take(hit)
            if not len(left):
                break
            step = step.take(hit)
            at = at.take(hit) + step
        return left


class IdentityIndex:
    """All accepted identities of one log."""

    def __init__(self) -> None:
        self._filters: list[_Filter] = []
        self._runs: list[Run] = []
        self._tail: list[Run] = []
        self._tail_entries = 0
        self._sealed_to = 0

    def __len__(self) -> int:
        return sum(part.entries for part in self._filters)

    def _add_to_filters(self, fingerprints: Fingerprints) -> None:
        while len(fingerprints):
            last = self._filters[-1] if self._filters else None
            if last is None or last.entries >= last.capacity:
                last = _Filter(_GROWTH * last.capacity if last is not None else _FIRST_CAPACITY)
                self._filters.append(last)
            room = last.capacity - last.entries
            last.add(fingerprints[:room])
            fingerprints = fingerprints[room:]

    def load(self, sealed: SealedRun) -> None:
        """Take a sealed run in, as it was written away; runs come in order, without a gap."""
        if sealed.start_position != self._sealed_to or self._tail:
            raise ValueError(f"a run from {self._sealed_to} on is needed")
        self._add_to_filters(sealed.run.fingerprints)
        self._runs.append(sealed.run)
        self._sealed_to = sealed.end_position

    def add(
        self, fingerprints: Fingerprints, positions: Positions, end_position: int
    ) -> SealedRun | None:
        """Take the accepted records below `end_position` in that were not taken in before.

        Gives a run to write away when one is full.
        """
        if not len(fingerprints):
            return None
        self._add_to_filters(fingerprints)
        tail = self._tail
        tail.append(sorted_run(fingerprints, positions))
        # Sizes that at least double keep a tail of single entries to a handful of parts.
        while len(tail) > 1 and len(tail[-2].positions) < 2 * len(tail[-1].positions):
            tail[-2:] = [_merged(tail[-2:])]
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
        suspect = np.zeros(len(fingerprints), dtype=np.bool_)
        for part in self._filters:
            suspect[part.held(fingerprints)] = True
        asked = np.flatnonzero(suspect)
        if not len(asked):
            return []
        wanted = fingerprints[asked]
        found: list[tuple[int, int]] = []
        for run in (*self._runs, *self._tail):
            first = np.searchsorted(run.fingerprints, wanted, side="left")
            there = run.fingerprints.take(first, mode="clip") == wanted
            for hit in np.flatnonzero(there).tolist():
                end = np.searchsorted(run.fingerprints, wanted[hit], side="right")
                question = int(asked[hit])
                found.extend(
                    (question, int(position)) for position in run.positions[first[hit] : end]
                )
        return found
