"""The inference service: `python -m inference.entrypoints.server`.

In order: what a dead process left in the spool is settled; the engine is
made (it forks, so before any thread, loop or gRPC is there) and warmed up;
requests are taken. SIGTERM ends them in the order back. Exit 0 after a
graceful stop; 1 when the engine or the spool is lost, with everything settled
that can be: the supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import sys

import structlog

from inference.adapters import models
from inference.adapters.adapter_store import AdapterStore
from inference.adapters.spool import Spool
from inference.adapters.spool_segments import SpoolUnusable, limits_for
from inference.adapters.vllm_start import MAX_ADAPTER_RANK
from inference.app import recovery
from inference.app.streams import Streams
from inference.entrypoints import engines
from inference.entrypoints.serving import Service
from inference.settings import ServerSettings
from kernel import errors, telemetry
from kernel.clock import SystemClock
from kernel.ids import new_id
from kernel.settings import load

log = structlog.get_logger()


def main() -> int:
    """Run until told to stop; gives the exit status."""
    settings = load(ServerSettings)
    telemetry.configure_logging("inference", settings.log_level)
    boot = f"{settings.producer}/{new_id('boot').removeprefix('boot-')}"
    try:
        asyncio.run(_settle_leftovers(settings, boot))
        base = models.discover(
            settings.model, settings.served_name, elsewhere=bool(settings.engine_url)
        )
        library = AdapterStore(
            settings.served_name,
            settings.model,
            settings.adapters,
            settings.spool_dir / "adapters",
            MAX_ADAPTER_RANK,
        )
        # It forks: before any loop, any thread, and before gRPC is touched.
        engine = engines.make(settings)
        # Not before: an exporter has a thread and a gRPC channel of its own.
        telemetry.configure_tracing("inference")
        telemetry.configure_metrics("inference")
        return asyncio.run(Service(settings, boot, engine, base, library).run())
    except (SpoolUnusable, models.ModelUnusable, errors.TollbookError) as error:
        sys.stderr.write(f"inference cannot run: {error}\n")
        return 1


async def _settle_leftovers(settings: ServerSettings, boot: str) -> None:
    """Settle and close what an earlier process left, before anything that can fail."""
    spool = Spool.open(settings.spool_dir, limits_for(settings.spool_max_bytes))
    spool.start()
    streams = Streams(spool.journal, boot, settings.partitions)
    found = recovery.recover(spool, streams, boot, SystemClock())
    await spool.close()
    if found.requests or found.engines or found.streams:
        log.info(
            "settled what was left",
            requests=found.requests,
            lost_tokens=found.lost_tokens,
            engines=found.engines,
            streams=found.streams,
        )


if __name__ == "__main__":
    raise SystemExit(main())
