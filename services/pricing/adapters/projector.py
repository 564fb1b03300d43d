"""The projector: follows every log, folds runs into effects, commits them with their positions.

One projector writes at a time (lease.py, and store.py fences). What rating
needs is kept in memory and rebuilt at each start from the control log and
from what waits in suspense; nothing else is.

While one step is being committed the next is rated. Memory is then ahead of
the database by one step; after any failure it is thrown away and rebuilt.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import structlog

from kernel import cycles, telemetry
from kernel.placement import CONTROL_LOG, partition_of_log
from pricing.adapters import bill_store, lease, month_store, step_rows, store
from pricing.adapters.alert_store import Watch
from pricing.adapters.ledger_client import Ledger, Run
from pricing.adapters.loops import load_loops
from pricing.adapters.tell import tell
from pricing.adapters.turns import let_others
from pricing.domain import tally
from pricing.domain.projection import Projection
from tollbook.ledger.v1 import ledger_pb2

log = structlog.get_logger()
tracer = telemetry.tracer("pricing.projector")

_QUEUED_LEAVES: Final = 16_000
"""Of each log, but for the run that goes beyond it. Not so many runs: what follows the end of a log
comes a few leaves at a time, and a projector that is behind must find more of them to rate at once.
"""
_STEP_LEAVES: Final = 40_000
"""Sums of as many events as of half of them are about as many rows: of steps twice as long each
event costs a fifth less.
"""
_LOOPS_FROM_LEAVES: Final = 1_000
_DISCOVER_MS: Final = 1_000
_DISCOVER_SOON_MS: Final = 100
"""Until a worker has made its logs, all of which come within moments."""


async def rebuild(ledger: Ledger, db: Any) -> tuple[Projection, dict[str, int]]:
    """The state at the positions that the database has, and those positions."""
    at = await store.positions(db)
    projection = Projection()
    async for run in ledger.read(CONTROL_LOG, 0, at.get(CONTROL_LOG, 0)):
        for position, raw in enumerate(run.leaves, run.first_position):
            projection.apply_control(position, raw, run.asides.get(position, b""))
    for name, position, pin, leaf in await store.suspended(db):
        projection.restore(name, position, pin, leaf)
    await month_store.restore(db, projection)
    await bill_store.restore(db, projection)
    return projection, at


def joined(runs: Iterable[Run]) -> Iterator[Run]:
    """Consecutive runs of one log, those with one pin in one: what is rated at once is summed, and
    written, once.
    """
    for _, alike in groupby(runs, key=attrgetter("pin")):
        parts = list(alike)
        first = parts[0]
        if len(parts) == 1:
            yield first
        else:
            yield first._replace(leaves=[raw for part in parts for raw in part.leaves])


def _is_usage(name: str) -> bool:
    return partition_of_log(name) is not None


class Projector:
    """One run of the projector, from the lease to the first error."""

    def __init__(
        self,
        db: Any,
        lease_db: Any,
        ledger: Ledger,
        watch: Watch,
        on_ready: Callable[[], None],
    ) -> None:
        self._db = db
        self._lease_db = lease_db
        self._ledger = ledger
        self._watch = watch
        self._on_ready = on_ready
        self._queues: dict[str, deque[Run]] = {}
        self._space: dict[str, asyncio.Event] = {}
        self._waiting: Counter[str] = Counter()
        self._arrived = asyncio.Event()
        self._projection = Projection()

    async def run(self) -> None:
        """Project until an error. Errors: LeaseLostError, FencedError, LogReplacedError, others."""
        async with asyncio.TaskGroup() as tasks:
            # While others write what there will be to rate, or another projector still leads.
            tasks.create_task(load_loops(only_kept=True))
            epoch = await lease.acquire(self._lease_db)
            tasks.create_task(lease.keep(self._lease_db, epoch))
            self._projection, at = await rebuild(self._ledger, self._db)
            await self._watch.prepare(self._db)
            cycles.settle()
            log.info("projecting", epoch=epoch, positions=at)
            tasks.create_task(self._discover(at, tasks))
            tasks.create_task(self._consume(epoch))

    async def _discover(self, at: dict[str, int], tasks: asyncio.TaskGroup) -> None:
        """Follow every log there is, and those that come later."""
        while True:
            listed = await self._ledger.stub.ListLogs(
                ledger_pb2.ListLogsRequest(without_pins=True), wait_for_ready=True
            )
            more_may_come = not any(map(_is_usage, self._queues))
            for state in listed.logs:
                name = state.log
                if name not in self._queues and (name == CONTROL_LOG or _is_usage(name)):
                    more_may_come = True
                    self._queues[name] = deque()
                    self._space[name] = asyncio.Event()
                    tasks.create_task(self._follow(name, at.get(name, 0)))
            self._on_ready()
            await asyncio.sleep((_DISCOVER_SOON_MS if more_may_come else _DISCOVER_MS) / 1000)

    async def _follow(self, name: str, first: int) -> None:
        queue, space = self._queues[name], self._space[name]
        async for run in self._ledger.follow(name, first):
            while self._waiting[name] >= _QUEUED_LEAVES:
                space.clear()
                await space.wait()
            queue.append(run)
            self._waiting[name] += len(run.leaves)
            self._arrived.set()

    def _is_behind(self) -> bool:
        """Whether so much waits that the compiled loops are worth their loading."""
        return self._waiting.total() >= _LOOPS_FROM_LEAVES

    def _next(self) -> Run | None:
        """The next run that can be applied: control first, then what its pin allows."""
        if self._queues.get(CONTROL_LOG):
            return self._take(CONTROL_LOG)
        for name, queue in self._queues.items():
            if queue and queue[0].pin <= self._projection.control.size:
                # To the end of the order, so that a busy log does not starve the others.
                self._queues[name] = self._queues.pop(name)
                return self._take(name)
        return None

    def _take(self, name: str) -> Run:
        self._space[name].set()
        run = self._queues[name].popleft()
        self._waiting[name] -= len(run.leaves)
        return run

    async def _consume(self, epoch: int) -> None:
        writing: asyncio.Task[None] | None = None
        known = step_rows.Known()
        try:
            while True:
                if self._is_behind() and not tally.is_ready():
                    # Nothing is rated meanwhile: beside the loading it would go at a thousand
                    # events a second, and the loading more slowly too.
                    await load_loops()
                # Cleared before looking, so that what arrives meanwhile is not slept over.
                self._arrived.clear()
                rated = await self._step()
                made = None if rated is None else (rated, await step_rows.gather(rated, known))
                if writing is not None:
                    await writing
                    writing = None
                if made is None:
                    await self._arrived.wait()
                    continue
                step, gathered = made
                writing = asyncio.create_task(self._write(epoch, step, gathered))
                # The next step's rating takes this process, so it waits until the database works.
                await step.sent.wait()
        finally:
            if writing is not None:
                writing.cancel()

    async def _step(self) -> store.Step | None:
        """Rate what is queued, up to a limit; None when nothing can be.

        Between its parts it lets the step that is being written go on: each answer of the
        database would else wait for all of them.
        """
        step = store.Step()
        leaves = 0
        usage: dict[str, list[Run]] = {}
        while leaves < _STEP_LEAVES and (run := self._next()) is not None:
            leaves += len(run.leaves)
            if run.log == CONTROL_LOG:
                for position, raw in enumerate(run.leaves, run.first_position):
                    aside = run.asides.get(position, b"")
                    effects = self._projection.apply_control(position, raw, aside)
                    step.add(CONTROL_LOG, position, position + 1, effects)
            else:
                usage.setdefault(run.log, []).append(run)
        for run in (whole for runs in usage.values() for whole in joined(runs)):
            effects = self._projection.apply_usage(run.log, run.first_position, run.pin, run.leaves)
            step.add(run.log, run.first_position, run.end_position, effects)
            await let_others()
        step.spend(self._projection.control.credit.limits_of)
        return step if leaves else None

    async def _write(self, epoch: int, step: store.Step, gathered: step_rows.Gathered) -> None:
        with tracer.start_as_current_span("project", attributes={"tollbook.events": step.events}):
            await store.write(self._db, epoch, step, gathered, self._watch)
        tell(step)
