"""The running engine's account: its counters beside what was settled, all the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from inference.adapters.spool import Spool
from inference.app.streams import Streams
from inference.domain.conservation import EngineBook
from inference.domain.journal import count_of
from inference.domain.records import EngineCount, Noted
from inference.engine import Engine
from kernel.clock import Clock
from tollbook.inference.v1 import inference_pb2 as inference

log = structlog.get_logger()

# Counters and events reach this process in the same loop turn, not in the same instant: a figure
# that does not agree is looked at again so often, over some two seconds. Not until a time: a
# process that was stopped for so long would look once and cry alarm.
SETTLE_LOOKS: Final = 120
_LONGEST_PAUSE_S: Final = 0.02
READ_EVERY_MS: Final = 1_000
READ_BUSY_EVERY_MS: Final = 10_000
RESIDUAL_METRIC: Final = "tollbook.inference.tokens.residual"
BACKLOG_METRIC: Final = "tollbook.inference.spool.backlog"


class Books:
    """The engine of this process, and those before it in the spool's journal."""

    def __init__(
        self,
        spool: Spool,
        streams: Streams,
        engine: Engine,
        engine_id: str,
        clock: Clock,
    ) -> None:
        self._spool = spool
        self._streams = streams
        self._engine = engine
        self._engine_id = engine_id
        self._clock = clock
        # Set once the registry is there: (requests, their output tokens so far).
        self.in_flight: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._noted: EngineCount | None = None
        self._published: EngineCount | None = None
        # What the last look found. Exporters read these two from a thread of their own.
        self._residual = 0
        self._backlog = 0
        meter = metrics.get_meter("inference")
        meter.create_observable_gauge(
            RESIDUAL_METRIC,
            callbacks=[self._observe_residual],
            unit="{token}",
            description="tokens that the engine counted and nobody else: 0, or an alarm",
        )
        meter.create_observable_gauge(
            BACKLOG_METRIC,
            callbacks=[self._observe_backlog],
            unit="{record}",
            description="usage records in the spool that the broker has not acknowledged",
        )

    def _observe_residual(self, options: CallbackOptions) -> Iterable[Observation]:
        del options
        return [Observation(self._residual)]

    def _observe_backlog(self, options: CallbackOptions) -> Iterable[Observation]:
        del options
        return [Observation(self._backlog)]

    @property
    def book(self) -> EngineBook:
        """This engine's book."""
        return self._spool.journal.engines[self._engine_id]

    def discard(self, kind: int, tokens: int) -> None:
        """Itemise waste of this engine."""
        self.book.discard(kind, tokens)

    def count(self) -> EngineCount:
        """Read the engine's counters into the book."""
        counters = self._engine.counters()
        self.book.count(counters.generation_tokens, counters.prompt_tokens)
        return count_of(self.book)

    def changed_count(self) -> EngineCount | None:
        """The count for the spool, when it changed since the last."""
        count = self.count()
        if count == self._noted:
            return None
        self._noted = count
        return count

    def residual(self) -> int:
        """Of this engine, now."""
        self.count()
        return self.book.residual(self.in_flight()[1])

    async def settled_residual(self) -> int:
        """The residual once counters and events had time to meet; 0, or an alarm."""
        for look in range(SETTLE_LOOKS):
            if not self.residual():
                return 0
            await asyncio.sleep(min(look * 0.001, _LONGEST_PAUSE_S))
        return self.residual()

    async def conservation(self) -> inference.GetConservationResponse:
        """Every engine's account. The running one's figures are of one instant."""
        residual = await self.settled_residual()
        requests, tokens = self.in_flight()
        now_us = self._clock.now_us()
        response = inference.GetConservationResponse(
            spool_backlog=len(self._spool.journal.outbox), in_flight=requests
        )
        for book in self._spool.journal.engines.values():
            own = book.engine_id == self._engine_id
            response.engines.add(
                reading=book.reading(now_us),
                settled_tokens=book.settled_tokens,
                in_flight_tokens=tokens if own else 0,
                residual_tokens=residual if own else book.residual(),
            )
        return response

    def publish(self) -> None:
        """Append the reading to the spool, for the log."""
        count = self.count()
        reading = self._streams.engine_reading(self.book.reading(self._clock.now_us()))
        self._spool.append(Noted(count, reading))
        self._noted = self._published = count

    async def look(self) -> int:
        """Compare counters and events, and tell what changed since the last look."""
        residual = await self.settled_residual()
        if residual and residual != self._residual:
            log.error("tokens are not conserved", residual=residual)
        elif self._residual and not residual:
            log.warning("tokens are conserved again", residual_before=self._residual)
        self._residual = residual
        self._backlog = len(self._spool.journal.outbox)
        return residual

    async def publish_for_ever(self) -> None:
        """Look every second, and publish changed counters: soon when nothing is in flight,
        else now and then.
        """
        last_ms = self._clock.monotonic_ms()
        while True:
            await asyncio.sleep(READ_EVERY_MS / 1000)
            await self.look()
            if self.count() == self._published:
                continue
            idle = self.in_flight()[0] == 0
            if idle or self._clock.monotonic_ms() - last_ms >= READ_BUSY_EVERY_MS:
                self.publish()
                last_ms = self._clock.monotonic_ms()

    def publish_final(self, lost: bool) -> None:
        """The last reading, when every request is settled; `lost`: the engine died."""
        self.count()
        if lost:
            self.book.close_lost()
        elif residual := self.book.residual():
            log.error("tokens are not conserved", residual=residual)
        self.book.final = True
        self.publish()
