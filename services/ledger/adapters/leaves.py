"""Leaves wherever they are kept: in the database's tables or in the files of sealed segments.

A reader asks by position and is not told which. Runs have a limit on entries
and bytes, so that what a reader holds is bounded however large leaves are.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from ledger.adapters import stored
from ledger.adapters.archive import Archive, Sealed
from ledger.adapters.store import BrokenLogError
from ledger.domain import leafrun
from ledger.domain.leafrun import LeafRun

RUN_ENTRIES: Final = 8_192
RUN_BYTES: Final = 4 * 1024 * 1024
"""A run is at most this long, in both; but always one row, which has 16 MiB at the most."""

KEPT_BYTES: Final = 64 * 1024 * 1024
"""Whole runs that were read last are kept up to this size: readers of one log tend to come in
groups, and a leaf never changes."""

_MAX_ROWS: Final = 2_048
_WORTH_A_THREAD: Final = 1_024
"""Fewer leaves than this are found sooner than a thread is."""

# The length of a value that is stored beside its row is known without reading it.
_ROWS: Final = """
SELECT first_position, entries, leaves FROM (
    SELECT first_position, entries, leaves,
        sum(octet_length(leaves)) OVER (ORDER BY first_position) - octet_length(leaves) AS before
    FROM (
        SELECT first_position, entries, leaves FROM log_chunk
        WHERE log_id = $1 AND first_position < $3 AND first_position >= (
            SELECT first_position FROM log_chunk WHERE log_id = $1 AND first_position <= $2
            ORDER BY first_position DESC LIMIT 1)
        ORDER BY first_position LIMIT $4
    ) AS near
) AS row WHERE before < $5 ORDER BY first_position
"""


_DETACHED: Final = (
    "SELECT s.log_id, s.start_position, s.end_position, s.file, s.sha256, s.end_root"
    " FROM log_segment s JOIN log_detached d USING (log_id, start_position)"
    " WHERE log_id = $1 ORDER BY start_position"
)


class LeafReader:
    """Reads the leaves of any log. Errors of every call: those of database.AWAY, BrokenLogError
    when a leaf is nowhere, ArchiveError when it is in a file that cannot be read.
    """

    def __init__(self, pool: Any, archive: Archive) -> None:
        self._pool = pool
        self._archive = archive
        # What was detached once stays so: this is only ever added to.
        self._detached: dict[int, list[Sealed]] = {}
        self._kept: OrderedDict[tuple[int, int], LeafRun] = OrderedDict()
        self._kept_bytes = 0

    async def run(self, log_id: int, first: int, end: int) -> LeafRun:
        """Leaves from `first` on, at least one, up to `end` or the limits of a run.

        Runs end at multiples of RUN_ENTRIES, so that readers who began anywhere meet.
        """
        key = (log_id, first // RUN_ENTRIES)
        end = min(end, (key[1] + 1) * RUN_ENTRIES)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept.part(first, end)
        sealed = self._sealed_at(log_id, first)
        if sealed is None:
            run = await self._from_tables(log_id, first, end)
            if run is not None:
                if len(run) == RUN_ENTRIES:
                    self._keep(key, run)
                return run
            await self._learn(log_id)
            sealed = self._sealed_at(log_id, first)
            if sealed is None:
                raise BrokenLogError(f"log {log_id}: position {first} is missing")
        return await self._archive.run(sealed, first, end)

    async def leaves(self, log_id: int, first: int, end: int) -> list[bytes]:
        """Leaf bytes of the positions [first, end)."""
        found: list[bytes] = []
        while first < end:
            run = await self.run(log_id, first, end)
            found += run.leaves()
            first = run.end
        return found

    async def at(self, log_id: int, positions: Iterable[int]) -> dict[int, bytes]:
        """Leaf bytes at single positions."""
        wanted = sorted(set(positions))
        for is_last in (False, True):
            filed = [item for item in wanted if self._sealed_at(log_id, item) is not None]
            try:
                found = await stored.leaves_at(self._pool, log_id, set(wanted) - set(filed))
            except BrokenLogError:
                if is_last:
                    raise
                await self._learn(log_id)
                continue
            for position in filed:
                found[position] = (await self.run(log_id, position, position + 1)).leaf(0)
            return found
        raise AssertionError("the second attempt gives an answer or raises")

    def _keep(self, key: tuple[int, int], run: LeafRun) -> None:
        if key in self._kept:
            return
        self._kept_bytes += len(run.data)
        self._kept[key] = run
        while self._kept_bytes > KEPT_BYTES:
            _, gone = self._kept.popitem(last=False)
            self._kept_bytes -= len(gone.data)

    def _sealed_at(self, log_id: int, position: int) -> Sealed | None:
        known = self._detached.get(log_id, [])
        at = bisect.bisect_right(known, position, key=lambda item: item.start) - 1
        return known[at] if at >= 0 and position < known[at].end else None

    async def _learn(self, log_id: int) -> None:
        rows = await self._pool.fetch(_DETACHED, log_id)
        self._detached[log_id] = [Sealed(*row) for row in rows]

    async def _from_tables(self, log_id: int, first: int, end: int) -> LeafRun | None:
        rows = await self._pool.fetch(_ROWS, log_id, first, end, _MAX_ROWS, RUN_BYTES)
        if end - first < _WORTH_A_THREAD:
            return _joined(log_id, rows, first, end)
        return await asyncio.to_thread(_joined, log_id, rows, first, end)


def _joined(log_id: int, rows: list[Any], first: int, end: int) -> LeafRun | None:
    """One run out of rows that follow each other, the first of which begins at `first` or before
    it; None when the leaf at `first` is in none.
    """
    begin = at = rows[0][0] if rows else first
    bundles = []
    for first_position, entries, data in rows:
        if first_position != at:
            break  # what is missing here is asked for next
        bundles.append(data)
        at += entries
    if not begin <= first < at:
        return None
    try:
        run = leafrun.of_bundles(begin, bundles, at - begin)
    except ValueError as error:
        raise BrokenLogError(f"log {log_id}: {error}") from None
    return run.part(first, end)
