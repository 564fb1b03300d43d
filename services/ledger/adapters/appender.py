"""The writer of one Append log: waiting requests share a commit, each gets its own answer.

Owns the log's tree in memory and its epoch. Several servers may append to one
log; the one that finds itself fenced takes over again and works the same
requests anew, which the idempotency keys make harmless, as they do when the
answer to a commit was lost.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple

import structlog

from kernel.clock import Clock
from kernel.errors import TollbookError, Unavailable
from ledger.adapters import database, store, stored
from ledger.adapters.store import FencedError, Head
from ledger.domain.appending import Placed, Wanted, plan_append
from ledger.domain.tree import TreeBuilder

log = structlog.get_logger()

MAX_WAITING: Final = 1_024
_MAX_GROUP: Final = 256
_MAX_GROUP_BYTES: Final = 8 * 1024 * 1024
_LEASE_MS: Final = 1
_ATTEMPTS: Final = 5
_RETRY_S: Final = 0.1


class _Waiting(NamedTuple):
    wanted: Wanted
    answer: asyncio.Future[Placed]


class Appender:
    """Appends to one log."""

    def __init__(self, pool: Any, name: str, owner: str, clock: Clock, grew: Any) -> None:
        self._pool = pool
        self._name = name
        self._owner = owner
        self._clock = clock
        self._grew = grew
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._head: Head | None = None
        self._tree: TreeBuilder | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run())

    @property
    def task(self) -> asyncio.Task[None]:
        """Runs as long as the appender lives; ends only by an error."""
        if self._task is None:
            raise RuntimeError("not started")
        return self._task

    async def stop(self) -> None:
        """End; those that still wait are told to try again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for waiting in self._waiting:
            if not waiting.answer.done():
                waiting.answer.set_exception(Unavailable("the ledger is stopping"))

    async def append(self, wanted: Wanted) -> Placed:
        """Append one record, together with whoever else waits.

        Errors: AlreadyExists, FailedPrecondition, Unavailable.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable(
                f"{MAX_WAITING} records wait to be appended to log {self._name!r} already",
                reason="APPEND_QUEUE_FULL",
                retry_after_ms=250,
            )
        answer: asyncio.Future[Placed] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(wanted, answer))
        self._arrived.set()
        return await answer

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size = 0
        for waiting in self._waiting[:_MAX_GROUP]:
            size += len(waiting.wanted.payload)
            if group and size > _MAX_GROUP_BYTES:
                break
            group.append(waiting)
        del self._waiting[: len(group)]
        # A caller that went away before its turn wants nothing any more.
        return [waiting for waiting in group if not waiting.answer.done()]

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            group = self._next_group()
            if not self._waiting:
                self._arrived.clear()
            if group:
                await self._serve(group)

    async def _serve(self, group: list[_Waiting]) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                answers = await self._write([waiting.wanted for waiting in group])
                break
            except (FencedError, *database.AWAY) as error:
                self._head = self._tree = None
                log.warning("append again", log=self._name, error=repr(error), attempt=attempt)
                await asyncio.sleep(_RETRY_S * (attempt + 1))
            except BaseException:
                self._head = self._tree = None
                _answer_all(group, Unavailable("the append failed", reason="APPEND_FAILED"))
                raise
        else:
            # Whether it was written is not known; the same key asked again tells.
            _answer_all(
                group,
                Unavailable(
                    f"log {self._name!r} cannot be written now; ask again with the same"
                    " idempotency key",
                    reason="LOG_NOT_WRITABLE",
                ),
            )
            return
        for waiting, answer in zip(group, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, TollbookError):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)

    async def _write(self, wanted: list[Wanted]) -> list[Placed | TollbookError]:
        async with self._pool.acquire() as db:
            if self._head is None or self._tree is None:
                self._head, self._tree = await self._take_over(db)
            head, tree = self._head, self._tree
            known = await stored.known_keys(
                db, head.log_id, {request.idempotency_key for request in wanted}
            )
            plan = plan_append(self._name, tree, wanted, known, self._clock.now_us() // 1000)
            if plan.batch is not None:
                if plan.batch.size > head.opened_to:
                    opened_to = await store.open_segments(db, head.log_id, plan.batch.size)
                    self._head = head = head._replace(opened_to=opened_to)
                await store.write_append(db, head, plan.batch, plan.keys, _LEASE_MS)
                self._grew(self._name)
        return plan.answers

    async def _take_over(self, db: Any) -> tuple[Head, TreeBuilder]:
        log_id = await store.open_log(db, self._name)
        head = await store.take_over(db, log_id, self._owner, _LEASE_MS)
        if head is None:
            raise FencedError(f"log {self._name}: another server took it over just now")
        return head, await stored.load_tree(db, head)


def _answer_all(group: list[_Waiting], error: TollbookError) -> None:
    for waiting in group:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
