"""The service's parts behind its doors, in the bench's own process: count, spool, broker, hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.engine_load import Ask, read
from inference import engine as port
from inference.adapters import models
from inference.adapters.publisher import Publisher
from inference.adapters.spool import Spool
from inference.app.books import Books
from inference.app.credit import Credit, Request
from inference.app.gate import Gate
from inference.app.order import Caller, World
from inference.app.reader import Reader
from inference.app.requests import Requests
from inference.app.shelf import Shelf
from inference.app.streams import Streams
from inference.domain.records import Booted
from kernel import telemetry
from kernel.clock import SystemClock
from kernel.ids import new_id
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

PARTITIONS: Final = 4
_MAX_REQUESTS: Final = 1_024
_FLUSH_S: Final = 60


class Unheld:
    """Credit that is never asked for."""

    async def hold(self, request: Request) -> str:
        """No hold."""
        del request
        return ""

    def settled(self, hold_id: str) -> None:
        """Nothing is held."""

    def release(self, account_id: str, hold_id: str) -> None:
        """Nothing is held."""


class Switched:
    """Credit of one kind or the other, from one round to the next."""

    def __init__(self, credit: Credit) -> None:
        self.credit = credit

    async def hold(self, request: Request) -> str:
        """As the credit of now does."""
        return await self.credit.hold(request)

    def settled(self, hold_id: str) -> None:
        """As the credit of now does."""
        self.credit.settled(hold_id)

    def release(self, account_id: str, hold_id: str) -> None:
        """As the credit of now does."""
        self.credit.release(account_id, hold_id)


@dataclass(frozen=True)
class Metered:
    """What a bench sends requests to, and where tokens that went past it are named."""

    requests: Requests
    books: Books

    def ask(self, account_id: str = "bench") -> Ask:
        """Through the registry, the count, the spool and the reader, as the doors do."""
        caller = Caller(account_id, "", f"{account_id}-key")

        async def ask(spec: inference.GenerationSpec, _salt: str) -> tuple[int, float]:
            reader = self.requests.find(caller, spec)
            assert isinstance(reader, Reader)
            return await read(reader.stream())

        return ask

    async def backlog(self) -> int:
        """Usage records that the broker has not acknowledged."""
        return (await self.books.conservation()).spool_backlog

    async def check(self, probe_tokens: int) -> int:
        """The residual, with what went past the meter on purpose. Errors: RuntimeError, not 0."""
        await self.requests.settled()
        self.books.discard(usage.WASTE_KIND_PROBE, probe_tokens)
        if residual := await self.books.settled_residual():
            raise RuntimeError(f"tokens are not conserved: residual {residual}")
        return residual


@asynccontextmanager
async def metered(
    engine: port.Engine,
    model: Path,
    spool_dir: Path,
    credit: Credit,
    gate: Gate,
    broker: tuple[str, str],
) -> AsyncIterator[Metered]:
    """Start the engine and put the parts together as entrypoints/serving.py does.

    `broker`: its address, and the topic.
    """
    clock, boot = SystemClock(), f"bench/{new_id('boot')}"
    warm_up = await engine.start()
    spool = Spool.open(spool_dir)
    streams = Streams(spool.journal, boot, PARTITIONS)
    spool.append(Booted(boot))
    spool.start()
    publisher = Publisher(spool, *broker, PARTITIONS)
    spool.on_commit = publisher.wake
    books = Books(spool, streams, engine, boot, clock)
    world = World(
        engine, boot, spool, streams, books, credit, gate, clock, telemetry.tracer("bench")
    )
    requests = Requests(world, b"bench", _MAX_REQUESTS, _MAX_REQUESTS)
    books.in_flight = requests.in_flight
    books.discard(usage.WASTE_KIND_WARM_UP, warm_up)
    spool.count_source = books.changed_count
    requests.admit(Shelf({"tiny": models.discover(model, "tiny")}))
    publishing = asyncio.create_task(publisher.run())
    try:
        yield Metered(requests, books)
        await spool.durable()
        await asyncio.wait_for(publisher.flushed(), _FLUSH_S)
    finally:
        publishing.cancel()
        with suppress(asyncio.CancelledError):
            await publishing
        await spool.close()
        await engine.stop()
