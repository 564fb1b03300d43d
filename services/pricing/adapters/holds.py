"""The door for holds: what waits is decided together, in one statement and one commit.

Any number of servers may stand on the same database. The row lock of a shard
makes whoever has it the shard's one writer for one transaction, in which it
reads what is so, decides, and writes: nothing is remembered between two, so
there is nothing to hand over when a server dies, and nothing that could be
out of date when one was paused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

import asyncpg
import structlog

from kernel import errors
from kernel.dsn import said
from pricing.adapters import database, hold_batch, hold_closer, hold_sql
from pricing.adapters.hold_ops import Answer, Made, Op, Releasing, Reserving, tell
from pricing.adapters.hold_windows import Windows

log = structlog.get_logger()

MAX_BATCH: Final = 256
MAX_QUEUED: Final = 10_000
SWEEP_MS: Final = 250
CLOSER_AT_ONCE: Final = 2
_ACQUIRE_S: Final = 5.0
_RETRIES: Final = 3
# A deadlock or a lost lock is nobody's fault and gone at the next attempt.
_AGAIN: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)

T = TypeVar("T", Op, Reserving)


class _Queue(deque[T]):
    """Asks in the order in which they came, and whether there are any."""

    def __init__(self) -> None:
        super().__init__()
        self._some = asyncio.Event()

    def put(self, op: T) -> None:
        self.append(op)
        self._some.set()

    async def take(self) -> list[T]:
        """Wait for one, and give all that there are, up to a limit."""
        await self._some.wait()
        batch = [self.popleft() for _ in range(min(len(self), MAX_BATCH))]
        if not self:
            self._some.clear()
        return batch


class HoldDoor:
    """A queue of asks, and the task that empties it; and the same for what takes a closer look."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._asked: _Queue[Op] = _Queue()
        self._closer: _Queue[Reserving] = _Queue()
        # By hold, what is asked of it while an ask of it is decided: they go one by one, in order.
        self._later: dict[str, deque[Op]] = {}
        self._waiting = 0
        self._windows = Windows()
        # Of the pool's connections the batches and the sweep keep one each.
        self._closer_room = asyncio.Semaphore(CLOSER_AT_ONCE)

    async def run(self) -> None:
        """Serve for ever; run it as a task."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._serve())
            tasks.create_task(self._look_closer())
            tasks.create_task(self._sweep())

    async def reserve(self, op: Reserving) -> Made:
        """Make, find or extend a hold. Errors: NotFound, QuotaExceeded, AlreadyExists,
        FailedPrecondition (its event is charged), Unavailable.
        """
        return cast(Made, await self._ask(op))

    async def release(self, account_id: str, hold_id: str) -> bool:
        """Give a hold up; False when it was gone. Errors: Unavailable."""
        return cast(bool, await self._ask(Releasing(account_id, hold_id)))

    async def _ask(self, op: Op) -> Made | bool:
        if self._waiting >= MAX_QUEUED:
            raise errors.Unavailable(
                f"{MAX_QUEUED} holds are asked for already", reason="TOO_MANY_HOLDS"
            )
        self._waiting += 1
        if (later := self._later.get(op.hold_id)) is not None:
            later.append(op)
        else:
            self._later[op.hold_id] = deque()
            self._asked.put(op)
        return await op.answer

    def _answer(self, op: Op, answer: Answer) -> None:
        """Answer an ask, and let the next one of its hold go."""
        if op.is_done:
            return
        op.is_done = True
        tell(op, answer)
        self._waiting -= 1
        if later := self._later[op.hold_id]:
            self._asked.put(later.popleft())
        else:
            del self._later[op.hold_id]

    def _wanted(self, batch: Sequence[T]) -> list[T]:
        """Without those whose callers went away: they need no hold."""
        wanted = []
        for op in batch:
            if op.answer.done():
                self._answer(op, False)
            else:
                wanted.append(op)
        return wanted

    async def _serve(self) -> None:
        while True:
            # While one batch commits the next one gathers.
            batch = self._wanted(await self._asked.take())
            if batch:
                await self._attempt(batch, partial(self._decide, batch))

    async def _decide(self, batch: Sequence[Op], db: Any) -> None:
        # Nobody is told anything before it is durable.
        answers, closer = await hold_batch.decide(db, batch, self._windows)
        for op, answer in answers:
            self._answer(op, answer)
        for op in closer:
            self._closer.put(op)

    async def _look_closer(self) -> None:
        while True:
            by_shard: dict[int, list[Reserving]] = {}
            for op in self._wanted(await self._closer.take()):
                by_shard.setdefault(op.shard, []).append(op)
            # Several at once: their locks and their accounts are not the same, and a commit of the
            # database takes all that wait for one.
            async with asyncio.TaskGroup() as tasks:
                for shard, batch in by_shard.items():
                    tasks.create_task(self._attempt_closer(shard, batch))

    async def _attempt_closer(self, shard: int, batch: Sequence[Reserving]) -> None:
        async with self._closer_room:
            await self._attempt(batch, partial(self._decide_closer, shard, batch))

    async def _decide_closer(self, shard: int, batch: Sequence[Reserving], db: Any) -> None:
        for op, answer in await hold_closer.decide(db, shard, batch, self._windows):
            self._answer(op, answer)

    async def _attempt(self, batch: Sequence[Op], decide: Callable[[Any], Awaitable[None]]) -> None:
        """Decide a batch, again after a mishap of the moment; all of it is answered in the end."""
        for attempt in range(1, _RETRIES + 1):
            try:
                async with self._pool.acquire(timeout=_ACQUIRE_S) as db:
                    await decide(db)
            except _AGAIN as error:
                if attempt == _RETRIES:
                    self._fail(batch, error)
            except database.AWAY as error:
                self._fail(batch, error)
                return
            except asyncpg.PostgresError as error:
                log.error("a batch of holds failed", error=said(error))
                self._fail(batch, error)
                return
            else:
                return

    def _fail(self, batch: Sequence[Op], error: BaseException) -> None:
        for op in batch:
            self._answer(
                op,
                errors.Unavailable(
                    f"holds cannot be kept now: {said(error)}; ask again with the same ids",
                    reason="DATABASE_AWAY",
                ),
            )

    async def _sweep(self) -> None:
        """End holds whose time is over, also where nobody asks for new ones."""
        while True:
            await asyncio.sleep(SWEEP_MS / 1000)
            try:
                async with self._pool.acquire(timeout=_ACQUIRE_S) as db:
                    for shard in await hold_sql.over(db):
                        await hold_sql.end(db, shard)
            except (*database.AWAY, *_AGAIN) as error:
                log.warning("database away", error=said(error))
