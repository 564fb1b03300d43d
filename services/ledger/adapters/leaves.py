"""Leaves out of the database, as runs of consecutive ones with a limit on entries and bytes."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from ledger.adapters.store import BrokenLogError
from ledger.domain import leafrun
from ledger.domain.leafrun import LeafRun

RUN_ENTRIES: Final = 16_384
RUN_BYTES: Final = 4 * 1024 * 1024
"""A run is at most this long, in both; but always one row, which has 16 MiB at the most."""

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


class LeafReader:
    """Reads the leaves of any log. Errors of every call: those of database.AWAY."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def run(self, log_id: int, first: int, end: int) -> LeafRun:
        """Leaves from `first` on, at least one, up to `end` or the limits of a run.

        Errors: BrokenLogError when the one at `first` is missing.
        """
        end = min(end, first + RUN_ENTRIES)
        rows = await self._pool.fetch(_ROWS, log_id, first, end, _MAX_ROWS, RUN_BYTES)
        if not rows:
            raise BrokenLogError(f"log {log_id}: position {first} is missing")
        if end - first < _WORTH_A_THREAD:
            return _joined(log_id, rows, first, end)
        return await asyncio.to_thread(_joined, log_id, rows, first, end)


def _joined(log_id: int, rows: list[Any], first: int, end: int) -> LeafRun:
    """One run out of consecutive rows, the first of which begins at `first` or before it."""
    begin = at = rows[0][0]
    for first_position, entries, _ in rows:
        if first_position != at:
            raise BrokenLogError(f"log {log_id}: position {at} is missing")
        at += entries
    if at <= first:
        raise BrokenLogError(f"log {log_id}: position {at} is missing")
    try:
        run = leafrun.of_bundles(begin, [row[2] for row in rows], at - begin)
    except ValueError as error:
        raise BrokenLogError(f"log {log_id}: {error}") from None
    return run.part(first, end)
