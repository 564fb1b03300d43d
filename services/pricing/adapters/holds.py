"""The door for holds: asks are gathered for a moment, and each shard's are decided in one commit.

Any number of servers may stand on the same database. The row lock of a shard
makes whoever has it the shard's one writer for one transaction, in which it
reads what is so, decides, and writes: nothing is remembered between two, so
there is nothing to hand over when a server dies, and nothing that could be
out of date when one was paused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

import asyncpg
import structlog

from kernel import errors
from kernel.placement import partition_of
from pricing.adapters import database, hold_sql
from pricing.adapters.hold_sql import Open
from pricing.domain.holds import Ask, Standing

log = structlog.get_logger()

LINGER_MS: Final = 1
MAX_BATCH: Final = 256
MAX_QUEUED: Final = 10_000
SWEEP_MS: Final = 250
_ACQUIRE_S: Final = 5.0
_RETRIES: Final = 3
# A deadlock or a lost lock is nobody's fault and gone at the next attempt.
_AGAIN: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)


class Made(NamedTuple):
    """An answer: the hold, and what is left for its project after it."""

    hold: Open
    spendable_pico: int
    currency: str


@dataclass(eq=False, slots=True)
class Reserving:
    """A hold that is asked for, of `ask.amount_pico`; `grows`: one that has it from now on."""

    ask: Ask
    currency: str
    ttl_us: int
    grows: bool = False
    answer: asyncio.Future[Made] = field(default_factory=asyncio.Future)


@dataclass(eq=False, slots=True)
class Releasing:
    """A hold that is given up."""

    account_id: str
    hold_id: str
    answer: asyncio.Future[bool] = field(default_factory=asyncio.Future)


Op = Reserving | Releasing


class HoldDoor:
    """Queues of the shards and the tasks that empty them."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._queues: list[list[Op]] = [[] for _ in range(hold_sql.SHARDS)]
        self._news = [asyncio.Event() for _ in range(hold_sql.SHARDS)]
        self._queued = 0

    async def run(self) -> None:
        """Serve for ever; run it as a task."""
        async with asyncio.TaskGroup() as tasks:
            for shard in range(hold_sql.SHARDS):
                tasks.create_task(self._serve(shard))
            tasks.create_task(self._sweep())

    async def reserve(self, op: Reserving) -> Made:
        """Make, find or extend a hold. Errors: NotFound, QuotaExceeded, AlreadyExists,
        FailedPrecondition (its event is charged), Unavailable.
        """
        return cast(Made, await self._ask(op.ask.account_id, op))

    async def release(self, account_id: str, hold_id: str) -> bool:
        """Give a hold up; False when it was gone. Errors: Unavailable."""
        return cast(bool, await self._ask(account_id, Releasing(account_id, hold_id)))

    async def _ask(self, account_id: str, op: Op) -> Made | bool:
        if self._queued >= MAX_QUEUED:
            raise errors.Unavailable(
                f"{MAX_QUEUED} holds are asked for already", reason="TOO_MANY_HOLDS"
            )
        shard = partition_of(account_id, hold_sql.SHARDS)
        self._queues[shard].append(op)
        self._queued += 1
        self._news[shard].set()
        return await op.answer

    async def _serve(self, shard: int) -> None:
        news, queue = self._news[shard], self._queues[shard]
        while True:
            await news.wait()
            # While one batch commits the next one gathers; the linger is for the first.
            await asyncio.sleep(LINGER_MS / 1000)
            batch, rest = queue[:MAX_BATCH], queue[MAX_BATCH:]
            queue[:] = rest
            self._queued -= len(batch)
            if not rest:
                news.clear()
            # Callers that went away need no hold.
            await self._decide(shard, [op for op in batch if not op.answer.done()])

    async def _sweep(self) -> None:
        """End holds whose time is over, also where nobody asks for new ones."""
        while True:
            await asyncio.sleep(SWEEP_MS / 1000)
            try:
                async with self._pool.acquire(timeout=_ACQUIRE_S) as db:
                    over = await db.fetch(
                        "SELECT DISTINCT shard FROM hold WHERE expires_at <= clock_timestamp()"
                    )
                for row in over:
                    await self._end(row["shard"])
            except (*database.AWAY, *_AGAIN) as error:
                log.warning("database away", error=database.said(error))

    async def _end(self, shard: int) -> None:
        async with self._pool.acquire(timeout=_ACQUIRE_S) as db:
            await hold_sql.lock(db, shard)
            try:
                await hold_sql.end(db, shard, ())
            except BaseException:
                await _roll_back(db)
                raise
            await db.execute("COMMIT")

    async def _decide(self, shard: int, batch: Sequence[Op]) -> None:
        for attempt in range(_RETRIES):
            try:
                await self._commit(shard, batch)
            except _AGAIN as error:
                if attempt + 1 == _RETRIES:
                    _fail(batch, error)
            except database.AWAY as error:
                _fail(batch, error)
                return
            except asyncpg.PostgresError as error:
                log.error("a batch of holds failed", error=database.said(error))
                _fail(batch, error)
                return
            else:
                return

    async def _commit(self, shard: int, batch: Sequence[Op]) -> None:
        if not batch:
            return
        async with self._pool.acquire(timeout=_ACQUIRE_S) as db:
            await hold_sql.lock(db, shard)
            try:
                answers = await _answers(db, shard, batch)
            except BaseException:
                await _roll_back(db)
                raise
            # Nobody is told anything before it is durable.
            await db.execute("COMMIT")
        for op, answer in answers:
            _tell(op, answer)


async def _roll_back(db: Any) -> None:
    with suppress(Exception):
        await db.execute("ROLLBACK")


def _fail(batch: Sequence[Op], error: BaseException) -> None:
    for op in batch:
        _tell(
            op,
            errors.Unavailable(
                f"holds cannot be kept now: {database.said(error)}; ask again with the same ids",
                reason="DATABASE_AWAY",
            ),
        )


def _tell(op: Op, answer: Made | bool | errors.TollbookError) -> None:
    if op.answer.done():
        return
    future = cast("asyncio.Future[Made | bool]", op.answer)
    if isinstance(answer, errors.TollbookError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


async def _answers(
    db: Any, shard: int, batch: Sequence[Op]
) -> list[tuple[Op, Made | bool | errors.TollbookError]]:
    """Decide a batch under the shard's lock, and write what was decided."""
    answers: list[tuple[Op, Made | bool | errors.TollbookError]] = []
    releasing = [op for op in batch if isinstance(op, Releasing)]
    if releasing:
        # First: what is given up may be what another of the batch needs.
        gone = await hold_sql.end(db, shard, [(op.hold_id, op.account_id) for op in releasing])
        answers += [(op, op.hold_id in gone) for op in releasing]
    reserving = [op for op in batch if isinstance(op, Reserving)]
    if not reserving:
        return answers
    found = await hold_sql.snapshot(
        db,
        shard,
        [op.ask.account_id for op in reserving],
        [op.ask.hold_id for op in reserving],
        # One that grows says nothing of its event: what is open is looked up as it is.
        min((op.ask.event_time_us for op in reserving if not op.grows), default=0),
    )
    made: dict[str, Open] = {}
    for op in reserving:
        older = made.get(op.ask.hold_id) or found.open.get(op.ask.hold_id)
        if older is not None and op.ask.amount_pico > older.amount_pico:
            # Asked again for more, as when prices rose meanwhile: the larger amount is held.
            op.grows = True
        answer = _decided(op, found, older)
        if isinstance(answer, Made):
            if op.grows and older is not None:
                more_pico = answer.hold.amount_pico - older.amount_pico
                hold = answer.hold
                if not await hold_sql.extend(db, hold.hold_id, more_pico, hold.expires_us):
                    answer = _gone(op.ask)
                else:
                    found.open[hold.hold_id] = hold
            elif older is None:
                made[answer.hold.hold_id] = answer.hold
        answers.append((op, answer))
    if made:
        await hold_sql.make(db, shard, list(made.values()))
    return answers


def _decided(
    op: Reserving, found: hold_sql.Snapshot, older: Open | None
) -> Made | errors.TollbookError:
    """What one ask is answered, counting it into the standing when it is granted."""
    ask = op.ask
    standing = found.standings.get(ask.account_id)
    if standing is None:
        return errors.NotFound(
            f"there is no account {ask.account_id!r}",
            reason="ACCOUNT_NOT_FOUND",
            metadata={"account_id": ask.account_id},
        )
    if op.currency and op.currency != standing.currency:
        return errors.InvalidArgument(
            f"account {ask.account_id!r} is in {standing.currency}, not in {op.currency}",
            reason="CURRENCY_MISMATCH",
            violations=(errors.FieldViolation("amount.currency", f"use {standing.currency}"),),
        )
    if op.grows:
        return _grown(op, found, standing, older)
    if older is not None:
        return _made(standing, older)
    if ask.hold_id in found.charged:
        return errors.FailedPrecondition(
            "the event is charged already; use a new event_id", reason="EVENT_CHARGED"
        )
    if refusal := _refused(standing, ask, ask.amount_pico):
        return refusal
    return _made(
        standing,
        Open(
            ask.hold_id,
            ask.account_id,
            ask.project_id,
            ask.key_id,
            ask.amount_pico,
            ask.event_time_us,
            found.now_us + op.ttl_us,
        ),
    )


def _grown(
    op: Reserving, found: hold_sql.Snapshot, standing: Standing, older: Open | None
) -> Made | errors.TollbookError:
    if older is None or older.account_id != op.ask.account_id:
        return _gone(op.ask)
    more_pico = max(0, op.ask.amount_pico - older.amount_pico)
    ask = op.ask._replace(
        project_id=older.project_id, key_id=older.key_id, event_time_us=older.event_time_us
    )
    if more_pico and (refusal := _refused(standing, ask, more_pico)):
        return refusal
    return _made(
        standing,
        older._replace(
            amount_pico=older.amount_pico + more_pico, expires_us=found.now_us + op.ttl_us
        ),
    )


def _refused(standing: Standing, ask: Ask, more_pico: int) -> errors.QuotaExceeded | None:
    """The error if limits are in the way; else the hold is counted."""
    refusals = standing.refusals(ask, more_pico)
    if not refusals:
        standing.hold(ask, more_pico)
        return None
    return errors.QuotaExceeded(
        "; ".join(refusal.description for refusal in refusals),
        reason="NO_CREDIT" if refusals[0].subject.startswith("account:") else "SPEND_LIMIT",
        metadata={"account_id": ask.account_id},
        violations=tuple(
            errors.QuotaViolation(refusal.subject, refusal.description) for refusal in refusals
        ),
    )


def _made(standing: Standing, hold: Open) -> Made:
    return Made(
        hold, standing.spendable_pico(hold.project_id, hold.event_time_us), standing.currency
    )


def _gone(ask: Ask) -> errors.NotFound:
    return errors.NotFound(
        f"account {ask.account_id!r} has no open hold {ask.hold_id!r}", reason="HOLD_NOT_FOUND"
    )
