"""`python -m pricing.entrypoints.projector`: logs to postings and balances."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import asyncpg
import grpc.aio
import structlog
import uvloop

from kernel import grpcs, settings, telemetry
from pricing.adapters import store
from pricing.adapters.ledger_client import Ledger
from pricing.adapters.projector import Projector
from pricing.settings import ProjectorSettings

log = structlog.get_logger()
_RETRY_MS: Final = 500


async def _project_for_ever(config: ProjectorSettings, door: grpcs.Server) -> None:
    """Run the projector; a lost database or ledger is met again after a moment."""
    ready: set[asyncio.Task[None]] = set()

    def on_ready() -> None:
        task = asyncio.ensure_future(door.set_ready(True))
        ready.add(task)
        task.add_done_callback(ready.discard)

    ledger = Ledger(config.ledger_address)
    try:
        fenced = False
        while not fenced:
            db = None
            try:
                db = await store.connect(config.pricing_postgres)
                await Projector(db, ledger, on_ready).run()
            except* store.FencedError as group:
                # Leaving lets the supervisor start anew; going on would fight the other one.
                log.error("fenced: another projector took over", error=str(group.exceptions[0]))
                fenced = True
            except* (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as group:
                log.warning("database away", error=str(group.exceptions[0]))
            except* grpc.aio.AioRpcError as group:
                log.warning("ledger away", error=str(group.exceptions[0])[:300])
            finally:
                await door.set_ready(False)
                if db is not None:
                    db.terminate()
            await asyncio.sleep(_RETRY_MS / 1000)
    finally:
        await ledger.close()


async def serve(config: ProjectorSettings) -> None:
    """Project until SIGTERM."""
    stopped = grpcs.stop_event()
    door = grpcs.Server("pricing-projector", config.health_address)
    await door.start()
    work = asyncio.ensure_future(_project_for_ever(config, door))
    waiter = asyncio.ensure_future(stopped.wait())
    await asyncio.wait({work, waiter}, return_when=asyncio.FIRST_COMPLETED)
    work.cancel()
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await work
    finally:
        await door.stop(0)
    log.info("stopped")
    if not stopped.is_set():
        raise SystemExit(3)


def main() -> None:
    """Start the projector."""
    config = settings.load(ProjectorSettings)
    telemetry.configure("pricing-projector", config.log_level)
    uvloop.run(serve(config))


if __name__ == "__main__":
    main()
