"""`python -m ledger.entrypoints.worker`: Kafka to logs. Several may run; each takes its share."""

from __future__ import annotations

import sys
from typing import Final

import asyncpg
import structlog
import uvloop

from kernel import cycles, errors, grpcs, settings, telemetry
from kernel.migrations import MigrationError
from ledger.adapters import database
from ledger.adapters.archive import Archive, ArchiveError
from ledger.adapters.leaves import LeafReader
from ledger.adapters.warmup import warm_up
from ledger.adapters.workforce import Workforce
from ledger.settings import WorkerSettings

log = structlog.get_logger()
_POOL: Final = 10


async def work(config: WorkerSettings) -> None:
    """Work until SIGTERM."""
    stopped = grpcs.stop_event()
    warm_up()
    cycles.settle()
    door = grpcs.Server("ledger-worker", config.health_address)
    await door.start()
    try:
        pool = await database.open_pool(config.ledger_postgres, _POOL, stopped)
        if pool is None:
            return
        force = Workforce(
            pool,
            config.kafka,
            config.topic,
            config.partitions,
            config.ledger_lease_ms,
            config.ledger_batch_records,
            LeafReader(pool, Archive(config.segments())),
        )
        try:
            await force.run(stopped, door.set_ready)
        finally:
            pool.terminate()
    finally:
        await door.stop(drain_ms=0)


def main() -> None:
    """Start a worker; status 1 with one line when it must not go on."""
    config = settings.load(WorkerSettings)
    telemetry.configure("ledger-worker", config.log_level)
    try:
        uvloop.run(work(config))
    except (
        MigrationError,
        ArchiveError,
        errors.TollbookError,
        asyncpg.PostgresError,
    ) as error:
        log.error("worker stopped", error=str(error))
        sys.stderr.write(f"ledger.worker: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
