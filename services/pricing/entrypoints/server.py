"""`python -m pricing.entrypoints.server`: PricingService and ControlService over gRPC."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg
import structlog
import uvloop

from kernel import grpcs, settings, telemetry
from kernel.clock import SystemClock
from pricing.adapters.answers import PricingAnswers, Reader
from pricing.adapters.changes import ControlChanges
from pricing.adapters.control_view import ControlView
from pricing.adapters.ledger_client import Ledger
from pricing.adapters.progress import Progress
from pricing.settings import ServerSettings
from tollbook.pricing.v1 import pricing_pb2_grpc

log = structlog.get_logger()
_POOL: Final = 8
_RETRY_MS: Final = 250
_NAMES: Final = ("tollbook.pricing.v1.PricingService", "tollbook.pricing.v1.ControlService")


async def _pool(dsn: str, stopped: asyncio.Event) -> Any:
    """Open the pool; a database that is not there yet is waited for."""
    while not stopped.is_set():
        try:
            return await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=_POOL,
                server_settings={"search_path": "pricing"},
                timeout=5,
            )
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            log.warning("database away", error=str(error))
            await asyncio.sleep(_RETRY_MS / 1000)
    return None


async def serve(config: ServerSettings) -> None:
    """Serve until SIGTERM."""
    stopped = grpcs.stop_event()
    door = grpcs.Server("pricing", config.pricing_address, _NAMES)
    ledger = Ledger(config.ledger_address)
    progress = Progress(config.pricing_postgres)
    view = ControlView(ledger)
    pool = await _pool(config.pricing_postgres, stopped)
    if pool is None:
        return
    reader = Reader(pool, progress)
    pricing_pb2_grpc.add_PricingServiceServicer_to_server(
        PricingAnswers(reader, ledger, view), door.grpc
    )
    pricing_pb2_grpc.add_ControlServiceServicer_to_server(
        ControlChanges(reader, ledger, SystemClock()), door.grpc
    )
    await door.start()
    background = [asyncio.ensure_future(progress.listen()), asyncio.ensure_future(view.follow())]
    await door.set_ready(True)
    waiter = asyncio.ensure_future(stopped.wait())
    # A background task ends only by an error that must not go unseen.
    await asyncio.wait([waiter, *background], return_when=asyncio.FIRST_COMPLETED)
    await door.stop()
    for task in background:
        task.cancel()
    results = await asyncio.gather(*background, return_exceptions=True)
    await ledger.close()
    pool.terminate()
    for result in results:
        if isinstance(result, Exception):
            raise result


def main() -> None:
    """Start the server."""
    config = settings.load(ServerSettings)
    telemetry.configure("pricing", config.log_level)
    uvloop.run(serve(config))


if __name__ == "__main__":
    main()
