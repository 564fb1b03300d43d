"""The projector: follows every log, folds runs into effects, commits them with their positions.

One projector writes at a time (store.py fences). What rating needs is kept in
memory and rebuilt from the logs at each start; nothing else is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import structlog
from opentelemetry import trace
from opentelemetry.util.types import AnyValue

from kernel import telemetry
from kernel.placement import CONTROL_LOG, partition_of_log
from pricing.adapters import store
from pricing.adapters.ledger_client import Ledger, Run
from pricing.domain.events import Event, read_leaves
from pricing.domain.projection import Effects, Projection, Suspended
from tollbook.ledger.v1 import ledger_pb2

log = structlog.get_logger()
tracer = telemetry.tracer("pricing.projector")

_QUEUED_RUNS: Final = 4
_STEP_LEAVES: Final = 20_000
_TRACED_EVENTS: Final = 64
_DISCOVER_MS: Final = 2_000


async def rebuild(ledger: Ledger, control_size: int, waiting: list[tuple[str, int]]) -> Projection:
    """Read the control log again up to a size, and the events that wait in suspense."""
    projection = Projection()
    async for run in ledger.read(CONTROL_LOG, 0, control_size):
        for position, raw in enumerate(run.leaves, run.first_position):
            projection.apply_control(position, raw)
    for name, position in waiting:
        entry = await ledger.stub.GetEntry(ledger_pb2.GetEntryRequest(log=name, position=position))
        event = next(iter(read_leaves(position, [entry.leaf])))
        if not isinstance(event, Event):
            raise RuntimeError(f"{name} position {position} waits in suspense and is no event")
        rest = tuple(
            part.leaf
            for part, _ in projection.receipt(event, entry.control_size)
            if part.priced is None
        )
        projection.suspense[name, position] = Suspended(
            name, entry.control_size, event._replace(leaves=rest)
        )
    return projection


class Projector:
    """One run of the projector, from take-over to the first error."""

    def __init__(self, db: Any, ledger: Ledger, on_ready: Callable[[], None]) -> None:
        self._db = db
        self._ledger = ledger
        self._on_ready = on_ready
        self._queues: dict[str, deque[Run]] = {}
        self._space: dict[str, asyncio.Event] = {}
        self._arrived = asyncio.Event()
        self._projection = Projection()

    async def run(self) -> None:
        """Project until an error or a fence. Errors: FencedError, database and ledger errors."""
        epoch = await store.take_over(self._db)
        at = await store.positions(self._db)
        self._projection = await rebuild(
            self._ledger, at.get(CONTROL_LOG, 0), await store.suspended(self._db)
        )
        log.info("projecting", epoch=epoch, positions=at)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._discover(at, tasks))
            tasks.create_task(self._consume(epoch))

    async def _discover(self, at: dict[str, int], tasks: asyncio.TaskGroup) -> None:
        """Follow every log there is, and those that come later."""
        while True:
            listed = await self._ledger.stub.ListLogs(
                ledger_pb2.ListLogsRequest(), wait_for_ready=True
            )
            for state in listed.logs:
                name = state.log
                wanted = name == CONTROL_LOG or partition_of_log(name) is not None
                if wanted and name not in self._queues:
                    self._queues[name] = deque()
                    self._space[name] = asyncio.Event()
                    tasks.create_task(self._follow(name, at.get(name, 0)))
            self._on_ready()
            await asyncio.sleep(_DISCOVER_MS / 1000)

    async def _follow(self, name: str, first: int) -> None:
        queue, space = self._queues[name], self._space[name]
        async for run in self._ledger.follow(name, first):
            while len(queue) >= _QUEUED_RUNS:
                space.clear()
                await space.wait()
            queue.append(run)
            self._arrived.set()

    def _next(self) -> Run | None:
        """The next run that can be applied: control first, then what its pin allows."""
        control = self._queues.get(CONTROL_LOG)
        if control:
            return self._take(CONTROL_LOG)
        for name, queue in self._queues.items():
            if queue and queue[0].pin <= self._projection.control_size:
                return self._take(name)
        return None

    def _take(self, name: str) -> Run:
        self._space[name].set()
        return self._queues[name].popleft()

    async def _consume(self, epoch: int) -> None:
        while True:
            step = store.Step()
            leaves = 0
            while leaves < _STEP_LEAVES and (run := self._next()) is not None:
                leaves += len(run.leaves)
                effects = self._apply(run)
                step.add(run.log, run.first_position, run.end_position, effects)
            if not leaves:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            with tracer.start_as_current_span("project", attributes={"tollbook.leaves": leaves}):
                await store.write(self._db, epoch, step)
            for name, effects in step.effects:
                _tell(name, effects)

    def _apply(self, run: Run) -> Effects:
        if run.log != CONTROL_LOG:
            return self._projection.apply_usage(run.log, run.first_position, run.pin, run.leaves)
        merged = Effects()
        for position, raw in enumerate(run.leaves, run.first_position):
            effects = self._projection.apply_control(position, raw)
            merged.postings += effects.postings
            merged.accounts += effects.accounts
            merged.keys += effects.keys
            merged.revoked += effects.revoked
            merged.cards += effects.cards
            merged.grants += effects.grants
            merged.ignored += effects.ignored
            # Released and waiting again within one run must not be written twice.
            for entry in effects.released:
                place = (entry.log, entry.event.position)
                before = len(merged.suspended)
                merged.suspended = [
                    kept for kept in merged.suspended if (kept.log, kept.event.position) != place
                ]
                if len(merged.suspended) == before:
                    merged.released.append(entry)
            merged.suspended += effects.suspended
        return merged


def _tell(name: str, effects: Effects) -> None:
    """Say what was posted: a span under each request's own trace, alarms for what is wrong."""
    for event in effects.events[:_TRACED_EVENTS]:
        context = telemetry.context_of_ids(event.trace_id, event.span_id)
        attributes: dict[str, AnyValue] = {
            telemetry.ACCOUNT: event.account_id,
            telemetry.REQUEST: event.event_id,
            telemetry.LOG: name,
            telemetry.POSITION: event.position,
        }
        with tracer.start_as_current_span(
            "post charge", context=context, kind=trace.SpanKind.CONSUMER, attributes=attributes
        ):
            log.debug(
                "posted",
                account_id=event.account_id,
                request_id=event.event_id,
                log=name,
                position=event.position,
            )
    if effects.suspended:
        first = effects.suspended[0]
        log.error(
            "usage without a price waits in suspense",
            entries=len(effects.suspended),
            log=first.log,
            position=first.event.position,
            account_id=first.event.account_id,
            model=first.event.context.model,
        )
    for ignored in effects.ignored:
        log.error("control record ignored", position=ignored.position, why=ignored.why)
