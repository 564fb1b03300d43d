"""Telling readers of a log that it grew: NOTIFY, after the commit and apart from it.

Inside the batch's transaction a NOTIFY would make all commits of the database
wait for each other (PostgreSQL queues them under one lock until they are on
disk). Apart from it a notice can be lost when a process dies between the two,
so listeners poll as well; the notice is for speed alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from ledger.adapters import database

CHANNEL: Final = "tollbook_ledger"
_RETRY_S: Final = 0.25


class Notifier:
    """Sends one notice for all logs that grew since the last one."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._grown = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run())

    def grew(self, log: str) -> None:
        """A log grew; readers look at all heads, so its name is not sent."""
        del log
        self._grown.set()

    async def _run(self) -> None:
        while True:
            await self._grown.wait()
            self._grown.clear()
            try:
                await self._pool.execute(f"NOTIFY {CHANNEL}")
            except database.AWAY:
                await asyncio.sleep(_RETRY_S)

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
