"""Waiting for the projection: a caller sleeps until a position is reached, never on a timer.

Listens for the projector's NOTIFY; a slow poll stands behind it for a
notification lost with a broken connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import structlog

from kernel import errors

log = structlog.get_logger()
_POLL_MS: Final = 250
_RECONNECT_MS: Final = 500
MAX_WAIT_MS: Final = 60_000


class Progress:
    """Wakes waiters whenever the projector committed."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._moved = asyncio.Event()

    async def listen(self) -> None:
        """Listen for ever; run it as a task."""
        while True:
            gone = asyncio.Event()
            try:
                db = await asyncpg.connect(self._dsn, timeout=10)
                try:
                    db.add_termination_listener(lambda *_, gone=gone: gone.set())
                    await db.add_listener("tollbook_pricing", self._on_notify)
                    await gone.wait()
                finally:
                    db.terminate()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("database away", error=str(error))
            await asyncio.sleep(_RECONNECT_MS / 1000)

    def _on_notify(self, *_: Any) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def until(
        self, reached: Callable[[], Awaitable[bool]], what: str, remaining_s: float | None
    ) -> None:
        """Wait until `reached` answers true, at most to the caller's deadline.

        Errors: DeadlinePassed names what was waited for.
        """
        limit_s = MAX_WAIT_MS / 1000
        # A little is kept back so that the answer still reaches the caller in time.
        if remaining_s is not None:
            limit_s = min(limit_s, max(0.0, remaining_s - 0.05))
        end = time.monotonic() + limit_s
        while True:
            moved = self._moved
            if await reached():
                return
            left = end - time.monotonic()
            if left <= 0:
                raise errors.DeadlinePassed(
                    f"{what} was not reached in time; ask again with a longer deadline",
                    reason="POSITION_NOT_REACHED",
                )
            try:
                await asyncio.wait_for(moved.wait(), min(left, _POLL_MS / 1000))
            except TimeoutError:
                continue
