"""`python -m ledger.entrypoints.server`: LedgerService over gRPC."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from typing import Final

import asyncpg
import structlog
import uvloop

from kernel import cycles, errors, grpcs, memory, settings, telemetry
from kernel.clock import SystemClock
from kernel.migrations import MigrationError
from kernel.placement import CONTROL_LOG, CUT_LOG
from ledger.adapters import database
from ledger.adapters.answers import LedgerAnswers
from ledger.adapters.appender import Appender
from ledger.adapters.archive import Archive
from ledger.adapters.feed import Feed
from ledger.adapters.gaps import GapWatch
from ledger.adapters.notify import Notifier
from ledger.adapters.reading import warm_up
from ledger.adapters.store import BrokenLogError
from ledger.settings import ServerSettings

log = structlog.get_logger()
_POOL: Final = 12
_NAMES: Final = ("tollbook.ledger.v1.LedgerService",)
AMONG: Final = _NAMES
"""Pricing calls it, and may be of a later release."""


async def serve(config: ServerSettings) -> None:
    """Serve until SIGTERM."""
    stopped = grpcs.stop_event()
    door = grpcs.Server("ledger", config.ledger_address, _NAMES, among=AMONG)
    pool = await database.open_pool(config.ledger_postgres, _POOL, stopped)
    if pool is None:
        return
    feed = Feed(pool, config.ledger_postgres)
    notifier = Notifier(pool)
    owner = f"server-{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    clock = SystemClock()
    appenders = {
        name: Appender(pool, name, owner, clock, notifier.grew) for name in (CONTROL_LOG, CUT_LOG)
    }
    watch = GapWatch(pool, config.ledger_gap_limit_ms, door.set_health)
    LedgerAnswers(
        pool, feed, appenders, config.origin, config.ledger_gap_limit_ms, Archive(config.segments())
    ).add_to(door.grpc)
    try:
        await door.start()
        await asyncio.to_thread(warm_up)
        cycles.settle()
        await feed.start()
        notifier.start()
        await watch.start()
        for appender in appenders.values():
            appender.start()
        await door.set_ready(True)
        background = [feed.task, watch.task, *(item.task for item in appenders.values())]
        waiter = asyncio.ensure_future(stopped.wait())
        # A background task ends only by an error that must not go unseen.
        await asyncio.wait([waiter, *background], return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        for task in background:
            if task.done():
                task.result()
    finally:
        await door.stop()
        for appender in appenders.values():
            await appender.stop()
        await watch.stop()
        await feed.stop()
        await notifier.stop()
        pool.terminate()


def main() -> None:
    """Start the server; status 1 with one line when it must not go on."""
    config = settings.load(ServerSettings)
    telemetry.configure("ledger", config.log_level)
    telemetry.configure_metrics("ledger")
    memory.keep_freed()  # before there are threads, each of which has an arena
    try:
        uvloop.run(serve(config))
    except (
        MigrationError,
        BrokenLogError,
        errors.TollbookError,
        asyncpg.PostgresError,
        OSError,
    ) as error:
        log.error("server stopped", error=str(error))
        sys.stderr.write(f"ledger.server: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
