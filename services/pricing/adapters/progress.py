"""Waiting for the projection: a caller sleeps until it is reached, never on a timer.

Listens for the projector's NOTIFY; a slow poll stands behind it for a
notification lost with a broken connection. However many callers wait, each
commit is looked at once, for all of them together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from kernel import errors, grpcs
from kernel.dsn import said
from pricing.adapters import database

log = structlog.get_logger()
_POLL_MS: Final = 250
_RECONNECT_MS: Final = 500
MAX_WAIT_MS: Final = 60_000
MAX_WAITERS: Final = 20_000

Look = Callable[[Sequence[bytes]], Awaitable[tuple[Mapping[str, int], set[bytes]]]]
"""How far each log is applied, and which of some events' identities are."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """What one caller waits for: sizes of logs, and an event's identity if not empty."""

    sizes: Mapping[str, int]
    identity: bytes
    reached: asyncio.Future[None] = field(default_factory=asyncio.Future)

    def is_reached(self, at: Mapping[str, int], found: set[bytes]) -> bool:
        return (not self.identity or self.identity in found) and all(
            at.get(name, 0) >= size for name, size in self.sizes.items()
        )


class Progress:
    """Wakes waiters whenever the projector committed what they wait for."""

    def __init__(self, dsn: str, look: Look) -> None:
        self._dsn = dsn
        self._look = look
        self._waiters: set[_Waiter] = set()
        self._news = asyncio.Event()
        self._commit = asyncio.Event()

    async def listen(self, tell: Callable[[bool], Awaitable[None]]) -> None:
        """Listen for commits for ever; run it as a task.

        Tells whenever the database comes, and goes.
        """
        while True:
            gone = asyncio.Event()
            try:
                db = await database.connect(self._dsn)
                try:
                    db.add_termination_listener(lambda *_, gone=gone: gone.set())
                    await db.add_listener("tollbook_pricing", self._on_notify)
                    await tell(True)
                    await gone.wait()
                finally:
                    db.terminate()
                    await tell(False)
            except database.AWAY as error:
                log.warning("database away", error=said(error))
            await asyncio.sleep(_RECONNECT_MS / 1000)

    def _on_notify(self, *_: Any) -> None:
        self._news.set()
        self._commit.set()
        self._commit = asyncio.Event()

    async def next_commit(self, limit_s: float) -> None:
        """Wait until the projector commits something, and for so long at the most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._commit.wait()

    async def wake(self) -> None:
        """Look for those that wait, for ever; run it as a task."""
        while True:
            try:
                async with asyncio.timeout(_POLL_MS / 1000 if self._waiters else None):
                    await self._news.wait()
            except TimeoutError:
                pass
            # Cleared before looking, so that what comes meanwhile is looked at again.
            self._news.clear()
            waiting = list(self._waiters)
            if waiting:
                await self._wake(waiting)

    async def _wake(self, waiting: Sequence[_Waiter]) -> None:
        try:
            at, found = await self._look([one.identity for one in waiting if one.identity])
        except errors.TollbookError as error:
            for one in waiting:
                if not one.reached.done():
                    one.reached.set_exception(error)
            return
        for one in waiting:
            if not one.reached.done() and one.is_reached(at, found):
                one.reached.set_result(None)

    async def until(
        self, sizes: Mapping[str, int], identity: bytes, what: str, remaining_s: float | None
    ) -> None:
        """Wait until the logs are applied to these sizes, and the event with this identity is.

        At most to the caller's deadline. Errors: DeadlinePassed names `what`
        was waited for; Unavailable while the database is away or too many wait.
        """
        if len(self._waiters) >= MAX_WAITERS:
            raise errors.Unavailable(
                f"{MAX_WAITERS} callers wait already; try again", reason="TOO_MANY_WAITERS"
            )
        limit_s = grpcs.time_to_work_s(remaining_s, MAX_WAIT_MS / 1000)
        waiter = _Waiter(sizes, identity)
        self._waiters.add(waiter)
        self._news.set()
        try:
            async with asyncio.timeout(limit_s):
                await waiter.reached
        except TimeoutError:
            raise errors.DeadlinePassed(
                f"{what} was not reached in time; ask again with a longer deadline",
                reason="POSITION_NOT_REACHED",
            ) from None
        finally:
            self._waiters.discard(waiter)
