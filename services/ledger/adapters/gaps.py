"""The alarm over producers' streams: a number that stays missing beyond a limit is told.

A gap is a record that its producer sent, or still has, and that is in no log:
nothing the ledger can mend, and no reason to stop reading or writing. So it is
told in three ways and stops nothing: an event in the service's log when it
becomes overdue and when it ends, a metric, and a health service of its own
name, which a probe may watch apart from the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple

import structlog
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from ledger.adapters import database

log = structlog.get_logger()

HEALTH_NAME: Final = "tollbook.ledger.streams"
METRIC: Final = "tollbook.ledger.streams.overdue"
_POLL_S: Final = 1.0
_MAX_TOLD: Final = 1_000
_MAX_RANGES_TOLD: Final = 4

_OVERDUE: Final = (
    "SELECT h.name, p.stream_id, p.missing, p.gap_since FROM producer_stream p"
    " JOIN log_head h USING (log_id)"
    " WHERE p.gap_since < now() - $1::bigint * interval '1 millisecond'"
    " ORDER BY p.gap_since LIMIT $2"
)


class Stream(NamedTuple):
    """Whose stream, in which log."""

    log: str
    stream_id: str


class GapWatch:
    """Looks once a second; remembers what it told, so that each gap is told once."""

    def __init__(
        self, pool: Any, limit_ms: int, on_health: Callable[[str, bool], Awaitable[None]]
    ) -> None:
        self._pool = pool
        self._limit_ms = limit_ms
        self._on_health = on_health
        self._told: set[Stream] = set()
        self._task: asyncio.Task[None] | None = None
        metrics.get_meter("ledger").create_observable_gauge(
            METRIC,
            callbacks=[self._observe],
            unit="{stream}",
            description="producers' streams with a number missing for longer than the limit",
        )

    async def start(self) -> None:
        """Look once, then go on looking."""
        await self._look()
        self._task = asyncio.create_task(self._run())

    @property
    def task(self) -> asyncio.Task[None]:
        """Runs as long as the watch lives; ends only by an error."""
        if self._task is None:
            raise RuntimeError("not started")
        return self._task

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _observe(self, options: CallbackOptions) -> Iterable[Observation]:
        del options
        return [Observation(len(self._told))]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            # The feed says that the database is away; a gap waits.
            with contextlib.suppress(*database.AWAY):
                await self._look()

    async def _look(self) -> None:
        rows = await self._pool.fetch(_OVERDUE, self._limit_ms, _MAX_TOLD)
        found: set[Stream] = set()
        for row in rows:
            stream = Stream(row["name"], row["stream_id"])
            found.add(stream)
            if stream not in self._told:
                missing = row["missing"]
                log.error(
                    "STREAM GAP",
                    log=stream.log,
                    stream_id=stream.stream_id,
                    missing=[
                        f"{first}-{end - 1}"
                        for first, end in zip(missing[::2], missing[1::2], strict=True)
                    ][:_MAX_RANGES_TOLD],
                    records=sum(missing[1::2]) - sum(missing[::2]),
                    since=row["gap_since"].isoformat(timespec="milliseconds"),
                )
        for stream in self._told - found:
            log.warning("stream gap ended", log=stream.log, stream_id=stream.stream_id)
        self._told = found
        await self._on_health(HEALTH_NAME, not found)
