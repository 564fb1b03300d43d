"""`python -m pricing.entrypoints.projector`: logs to postings and balances."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import asyncpg
import grpc.aio
import structlog
import uvloop

from kernel import errors, grpcs, settings, telemetry
from kernel.dsn import refusals, said
from kernel.migrations import MigrationError
from pricing.adapters import alert_rules, database, store
from pricing.adapters.alert_store import Watch
from pricing.adapters.lease import LeaseLostError
from pricing.adapters.ledger_client import Ledger, LogReplacedError
from pricing.adapters.migrate import SCHEMA
from pricing.adapters.projector import Projector
from pricing.adapters.together import RowsGoneError
from pricing.settings import ProjectorSettings

log = structlog.get_logger()
_RETRY_MS: Final = 500
# What another moment does not mend, and a person has to look at.
_FINAL: Final = (
    LogReplacedError,
    MigrationError,
    asyncpg.PostgresError,
    errors.FailedPrecondition,
)


async def _project_once(
    config: ProjectorSettings, door: grpcs.Server, ledger: Ledger, watch: Watch
) -> None:
    """Wait for the lease and project until an error."""
    tasks: set[asyncio.Task[None]] = set()

    def on_ready() -> None:
        task = asyncio.ensure_future(door.set_ready(True))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async with contextlib.AsyncExitStack() as open_connections:
        connections = []
        for _ in range(2):
            with refusals(database.SETTING, database.AWAY):
                db = await database.connect(config.pricing_postgres)
            open_connections.callback(db.terminate)
            connections.append(db)
        await SCHEMA.check_version(connections[0])
        try:
            await Projector(connections[0], connections[1], ledger, watch, on_ready).run()
        finally:
            await door.set_ready(False)


async def _project_for_ever(config: ProjectorSettings, door: grpcs.Server) -> None:
    """Project again after every error that another moment may mend.

    Errors: those that no moment mends, LogReplacedError and MigrationError among them.
    """
    watch = Watch(alert_rules.read(config.alerts))
    ledger = Ledger(config.ledger_address)
    try:
        while True:
            try:
                await _project_once(config, door, ledger, watch)
            except* (store.FencedError, LeaseLostError) as group:
                log.warning("another projector took over", error=str(_innermost(group)))
            except* RowsGoneError as group:
                log.error("tables were changed by another hand", error=str(_innermost(group)))
            except* database.AWAY as group:
                log.warning("database away", error=said(_innermost(group)))
            except* (grpc.aio.AioRpcError, errors.Unavailable) as group:
                log.warning("ledger away", error=str(_innermost(group))[:300])
            await asyncio.sleep(_RETRY_MS / 1000)
    finally:
        await ledger.close()


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def serve(config: ProjectorSettings) -> None:
    """Project until SIGTERM, or leave with status 1 when it cannot go on."""
    stopped = grpcs.stop_event()
    door = grpcs.Server("pricing-projector", config.health_address)
    await door.start()
    work = asyncio.ensure_future(_project_for_ever(config, door))
    waiter = asyncio.ensure_future(stopped.wait())
    await asyncio.wait({work, waiter}, return_when=asyncio.FIRST_COMPLETED)
    work.cancel()
    try:
        await work
    except asyncio.CancelledError:
        log.info("stopped")
    except BaseException as error:
        found = _innermost(error)
        if not isinstance(found, _FINAL):
            raise
        log.error("cannot go on", error=said(found))
        raise SystemExit(1) from None
    finally:
        await door.stop(0)


def main() -> None:
    """Start the projector; status 1 with one line when it cannot go on."""
    config = settings.load(ProjectorSettings)
    telemetry.configure("pricing-projector", config.log_level)
    try:
        uvloop.run(serve(config))
    except errors.TollbookError as error:
        log.error("cannot go on", error=str(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
