"""Pricing's tables as the projector writes them, from leaves that a test makes: real rating, the
real transaction, a real database, and no ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
from tests.unit.pricing import builders as make

from kernel.clock import timestamp_of
from kernel.placement import CONTROL_LOG
from pricing.adapters import database, step_rows, store
from pricing.adapters.alert_store import Watch
from pricing.adapters.holds import HoldDoor
from pricing.domain.holds import hold_id_of
from pricing.domain.projection import Projection
from tollbook.usage.v1 import usage_pb2 as usage


@asynccontextmanager
async def hold_doors(dsn: str, count: int = 1) -> AsyncIterator[list[HoldDoor]]:
    """So many servers' ways to holds, running, each with connections of its own."""
    stopped = asyncio.Event()
    async with AsyncExitStack() as stack:
        doors: list[HoldDoor] = []
        for _ in range(count):
            pool = await database.open_pool(dsn, 4, stopped)
            assert pool is not None
            stack.callback(pool.terminate)
            doors.append(await stack.enter_async_context(running(HoldDoor(pool))))
        yield doors


@asynccontextmanager
async def running(door: HoldDoor) -> AsyncIterator[HoldDoor]:
    """A door while it runs; one that ended by itself is a failure."""
    task = asyncio.ensure_future(door.run())
    try:
        yield door
        assert not task.done(), "a door stopped"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Books:
    """The projector's part: one writer, real rating, the real transaction."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.projection = Projection()
        self._db: Any = None
        self.pin = 0
        self._control = 0
        self._usage = 0
        self.watch: Watch | None = None
        self._lock = asyncio.Lock()

    @classmethod
    async def opened(cls, admin: Any, dsn: str, account_ids: Sequence[str]) -> Books:
        """Empty tables, then a card and these accounts. `admin` then sees the schema."""
        await admin.execute("SET search_path = pricing")
        kept = ("schema_version", "projector", "hold_shard")
        tables = await admin.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'pricing'"
            " AND NOT tablename = ANY($1)",
            kept,
        )
        await admin.execute("TRUNCATE " + ", ".join(row["tablename"] for row in tables))
        await admin.execute("UPDATE projector SET epoch = 1")
        books = cls(dsn)
        accounts = (make.account(number, name) for number, name in enumerate(account_ids, 1))
        for raw in (make.card(0), *accounts):
            await books.control(raw)
        books.pin = 1 + len(account_ids)
        return books

    async def _write(self, step: store.Step) -> None:
        # What was rated is in memory: it is written until it stands, as after a lost connection.
        while True:
            try:
                if self._db is None:
                    self._db = await database.connect(self._dsn)
                at = await store.positions(self._db)
                if any(at.get(log, 0) < end for log, (_, end) in step.moves.items()):
                    gathered = await step_rows.gather(step, step_rows.Known())
                    await store.write(self._db, 1, step, gathered, self.watch)
                return
            except (*database.AWAY, asyncpg.DeadlockDetectedError):
                if self._db is not None:
                    self._db.terminate()
                    self._db = None

    async def control(self, raw: bytes) -> None:
        step = store.Step()
        at = self._control
        self._control += 1
        step.add(CONTROL_LOG, at, at + 1, self.projection.apply_control(at, raw))
        step.spend(self.projection.control.credit.limits_of)
        await self._write(step)

    async def change(self, **change: Any) -> None:
        """Any other record of the control log."""
        async with self._lock:
            await self.control(make.control(self._control, **change))

    async def grant(self, account_id: str, amount_pico: int) -> None:
        async with self._lock:
            raw = make.grant(self._control, f"g{self._control}", amount_pico, account_id)
            await self.control(raw)

    async def charge(
        self, account_id: str, event_id: str, tokens: int, at_us: int = make.T0_US, **more: Any
    ) -> None:
        """An event of so many output tokens, rated and written."""
        async with self._lock:
            event = usage.UsageEvent(
                event_id=event_id,
                account_id=account_id,
                served_model="tiny",
                outcome=usage.OUTCOME_COMPLETE,
                event_time=timestamp_of(at_us),
                hold_id=hold_id_of(account_id, event_id),
                **more,
            )
            event.quantities.add(
                unit=usage.UNIT_TOKEN, direction=usage.DIRECTION_OUT, amount=tokens
            )
            record = usage.UsageRecord(stream_id="s", usage_event=event.SerializeToString())
            at = self._usage
            self._usage += 1
            raw = make.entry(record.SerializeToString(), at)
            step = store.Step()
            step.add(
                "usage-0", at, at + 1, self.projection.apply_usage("usage-0", at, self.pin, [raw])
            )
            step.spend(self.projection.control.credit.limits_of)
            await self._write(step)
