"""`python -m ledger.entrypoints.tiles`: publishes the logs as tiles, and serves them over HTTP."""

from __future__ import annotations

import asyncio
import sys

import structlog
import uvloop

from kernel import errors, grpcs, settings, telemetry, web
from ledger.adapters import tile_web
from ledger.adapters.publishing import LedgerAwayError, NotTheSignedError, Publisher
from ledger.adapters.tile_store import StoreUnusableError, TileStore
from ledger.settings import TilesSettings
from tollbook.ledger.v1 import ledger_pb2_grpc

log = structlog.get_logger()


class _State:
    """Why publishing does not go on; empty while it does."""

    problem = "nothing is published yet"


async def _publish(config: TilesSettings, store: TileStore, state: _State) -> None:
    async with grpcs.channel(config.ledger_address) as channel:
        publisher = Publisher(ledger_pb2_grpc.LedgerServiceStub(channel), store)
        while True:
            before = state.problem
            try:
                grown = await publisher.publish_grown()
                state.problem = ""
                if grown:
                    log.debug("published", logs=grown)
            except NotTheSignedError as error:
                state.problem = str(error)
                log.error("NOT PUBLISHED", problem=state.problem)
            except (LedgerAwayError, StoreUnusableError) as error:
                state.problem = str(error)
                if state.problem != before:
                    log.warning("waiting", problem=state.problem)
            await asyncio.sleep(config.tiles_interval_ms / 1000)


async def run(config: TilesSettings) -> None:
    """Publish and serve until SIGTERM."""
    stopped = grpcs.stop_event()
    store = TileStore(config.tiles_url)
    state = _State()
    app = tile_web.app_of(store, lambda: state.problem)
    publishing = asyncio.create_task(_publish(config, store, state))
    serving = asyncio.create_task(web.serve(app, config.tiles_address, stopped))
    try:
        await asyncio.wait({publishing, serving}, return_when=asyncio.FIRST_COMPLETED)
        stopped.set()
        await serving
        if publishing.done():
            publishing.result()
    finally:
        publishing.cancel()
        await asyncio.wait({publishing})


def main() -> None:
    """Start; status 1 with one line when it must not go on."""
    config = settings.load(TilesSettings)
    telemetry.configure("ledger-tiles", config.log_level)
    try:
        uvloop.run(run(config))
    except (StoreUnusableError, errors.TollbookError, OSError) as error:
        log.error("tiles stopped", error=str(error))
        sys.stderr.write(f"ledger.tiles: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
