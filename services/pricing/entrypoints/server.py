"""`python -m pricing.entrypoints.server`: PricingService and ControlService over gRPC."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import structlog
import uvloop

from kernel import cycles, errors, grpcs, settings, telemetry
from kernel.clock import SystemClock
from kernel.dsn import said
from kernel.migrations import MigrationError
from pricing.adapters import alert_rules, database
from pricing.adapters.answers import Reader
from pricing.adapters.control_view import ControlView
from pricing.adapters.holds import CLOSER_AT_ONCE, HoldDoor
from pricing.adapters.ledger_client import Ledger, LogReplacedError
from pricing.adapters.operator_changes import OperatorChanges
from pricing.adapters.period_changes import PeriodChanges
from pricing.adapters.rate_cards import RateCards
from pricing.adapters.recorder import Recorder
from pricing.adapters.rehearser import Rehearser
from pricing.adapters.usage_answers import UsageAnswers
from pricing.adapters.webhooks import Webhooks
from pricing.settings import ServerSettings
from tollbook.pricing.v1 import cards_pb2_grpc, pricing_pb2_grpc

log = structlog.get_logger()
_POOL: Final = 8
_HOLD_POOL: Final = 2 + CLOSER_AT_ONCE
_NAMES: Final = (
    "tollbook.pricing.v1.PricingService",
    "tollbook.pricing.v1.ControlService",
    "tollbook.pricing.v1.RateCardService",
    "tollbook.pricing.v1.OperatorService",
)
AMONG: Final = ("tollbook.pricing.v1.PricingService",)
"""Inference calls it, and may be of a later release. The others change what is charged, for people:
what they ask for is done whole or not at all.
"""


async def serve(config: ServerSettings) -> None:
    """Serve until SIGTERM."""
    alerts = alert_rules.read(config.alerts)
    stopped = grpcs.stop_event()
    door = grpcs.Server("pricing", config.pricing_address, _NAMES, among=AMONG)
    ledger = Ledger(config.ledger_address)
    view = ControlView(ledger)
    pool = await database.open_pool(config.pricing_postgres, _POOL, stopped)
    if pool is None:
        return
    # Of its own, so that no slow question keeps a hold waiting.
    hold_pool = await database.open_pool(config.pricing_postgres, _HOLD_POOL, stopped)
    if hold_pool is None:
        return
    # Of its own, too: a connection for each who is told, so that none waits for a slow one.
    tell_size = max(1, len(alerts.webhooks))
    tell_pool = await database.open_pool(config.pricing_postgres, tell_size, stopped)
    if tell_pool is None:
        return
    reader = Reader(pool, config.pricing_postgres)
    clock = SystemClock()
    holds = HoldDoor(hold_pool)
    answers = UsageAnswers(reader, ledger, view, holds, clock)
    pricing_pb2_grpc.add_PricingServiceServicer_to_server(answers, door.grpc)
    changes = PeriodChanges(reader, ledger, view, clock, answers, holds)
    pricing_pb2_grpc.add_ControlServiceServicer_to_server(changes, door.grpc)
    recorder = Recorder(reader, ledger, view, SystemClock())
    rehearser = Rehearser()
    cards_pb2_grpc.add_RateCardServiceServicer_to_server(
        RateCards(recorder, ledger, rehearser, config.ledger_address), door.grpc
    )
    cards_pb2_grpc.add_OperatorServiceServicer_to_server(OperatorChanges(recorder), door.grpc)
    await door.start()
    listening = asyncio.ensure_future(reader.progress.listen(door.set_ready))
    background = [
        listening,
        asyncio.ensure_future(reader.progress.wake()),
        asyncio.ensure_future(view.follow()),
        asyncio.ensure_future(holds.run()),
        asyncio.ensure_future(changes.tend()),
        asyncio.ensure_future(Webhooks(tell_pool, alerts.webhooks).run()),
    ]
    # A long look for cycles would stand between callers and their holds.
    cycles.settle()
    waiter = asyncio.ensure_future(stopped.wait())
    # A background task ends only by an error that must not go unseen.
    await asyncio.wait([waiter, *background], return_when=asyncio.FIRST_COMPLETED)
    # Or it could say that callers may come, while the last ones are seen off.
    listening.cancel()
    # A stream lives as long as its caller: it would be waited for in vain.
    answers.streams.end()
    await door.stop()
    for task in background:
        task.cancel()
    results = await asyncio.gather(*background, return_exceptions=True)
    rehearser.stop()
    await ledger.close()
    pool.terminate()
    hold_pool.terminate()
    tell_pool.terminate()
    for result in results:
        if isinstance(result, Exception):
            raise result


def main() -> None:
    """Start the server; status 1 with one line when it cannot go on."""
    config = settings.load(ServerSettings)
    telemetry.configure("pricing", config.log_level)
    try:
        uvloop.run(serve(config))
    except (MigrationError, LogReplacedError, errors.TollbookError, asyncpg.PostgresError) as error:
        log.error("cannot go on", error=said(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
