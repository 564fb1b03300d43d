"""The service's parts put together on one event loop, and their order of life and death."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc.aio
import structlog

from inference.adapters.adapter_service import AdapterService
from inference.adapters.batch_lines import Lines
from inference.adapters.batch_routes import BatchRoutes
from inference.adapters.batch_store import BatchStore
from inference.adapters.call_parser import CallParser
from inference.adapters.credit import PricingCredit
from inference.adapters.grpc_service import InferenceService
from inference.adapters.http_door import HttpDoor
from inference.adapters.http_guard import Guard, overloaded
from inference.adapters.keys import Keys
from inference.adapters.models import ModelUnusable
from inference.adapters.openai_bodies import Bodies
from inference.adapters.publisher import Publisher
from inference.adapters.spool import Spool
from inference.adapters.spool_segments import limits_for
from inference.app.adapters import Adapters, Library
from inference.app.batch_runner import BatchRunner
from inference.app.books import Books
from inference.app.dozing import AWAY, Dozing
from inference.app.ending import say_last
from inference.app.gate import Gate, yielded_places
from inference.app.order import World
from inference.app.requests import Requests
from inference.app.residency import Residency
from inference.app.shelf import Served, Shelf
from inference.app.streams import Streams
from inference.domain.records import Booted, Closed
from inference.engine import Engine
from inference.settings import ServerSettings
from kernel import errors, grpcs, telemetry, web
from kernel.clock import SystemClock
from tollbook.inference.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from tollbook.usage.v1 import usage_pb2 as usage

log = structlog.get_logger()

SETTLE_LOST_MS: Final = 5_000
RETRY_AFTER_STOP_MS: Final = 2_000


class Service:
    """One boot of the service; `boot` is its engine's id and its streams' prefix."""

    def __init__(
        self,
        settings: ServerSettings,
        boot: str,
        engine: Engine,
        base: Served,
        library: Library,
    ) -> None:
        self._settings = settings
        self._boot = boot
        self._clock = SystemClock()
        self._dozing: Dozing | None = None
        if settings.idle_timeout_ms:
            if not engine.capabilities().sleeps:
                raise ModelUnusable(
                    "TOLLBOOK_IDLE_TIMEOUT_MS: this engine cannot be put to sleep; that is for the"
                    " engine inside, on a CPU"
                )
            self._dozing = Dozing(engine, self._clock, settings.idle_timeout_ms, settings.wake_ms)
        self._engine: Engine = self._dozing or engine
        self._base = base
        self._library = library
        self._shelf = Shelf({base.target.served_name: base})

    async def run(self) -> int:
        """Serve until told to stop, or until the engine or the spool is lost."""
        settings = self._settings
        stopped = grpcs.stop_event()
        spool = Spool.open(settings.spool_dir, limits_for(settings.spool_max_bytes))
        streams = Streams(spool.journal, self._boot, settings.partitions)
        spool.append(Booted(self._boot))
        spool.start()
        publisher = Publisher(spool, settings.kafka, settings.topic, settings.partitions)
        spool.on_commit = publisher.wake
        books = Books(spool, streams, self._engine, self._boot, self._clock)
        channel = grpcs.channel(settings.pricing_address)
        credit = PricingCredit(channel, self._clock, settings.credit_policy)
        world = World(
            self._engine,
            self._boot,
            spool,
            streams,
            books,
            credit,
            Gate(settings.engine_requests),
            self._clock,
            telemetry.tracer("inference"),
        )
        requests = Requests(
            world,
            _salt_key(settings.spool_dir),
            settings.max_requests,
            settings.max_account_requests,
        )
        books.in_flight = requests.in_flight
        adapters = Adapters(self._engine, self._library, self._shelf, self._base, requests.in_use)
        requests.on_end = adapters.let_out.set
        residency = Residency(
            spool,
            streams,
            books,
            self._clock,
            settings.residency_account,
            settings.served_name,
            settings.region,
            settings.residency_slice_ms,
        )
        if self._dozing is not None:
            self._dozing.on_warm_up = partial(books.discard, usage.WASTE_KIND_WARM_UP)
            self._dozing.on_change = residency.change
        publishing = asyncio.create_task(publisher.run(), name="publisher")
        keeping = asyncio.create_task(credit.keep_for_ever(), name="holds")
        status = 1
        try:
            residency.change(usage.UNIT_MODEL_START_MS)
            warm_up_tokens = await self._engine.start()
            residency.change(usage.UNIT_MODEL_RESIDENT_MS)
            await adapters.load_all()
            books.discard(usage.WASTE_KIND_WARM_UP, warm_up_tokens)
            spool.count_source = books.changed_count
            status = await self._serve(
                requests, books, residency, adapters, spool, stopped, channel
            )
        finally:
            lost = status != 0

            def append_last() -> None:
                residency.change(AWAY)
                books.publish_final(lost)
                for name in streams.open_streams():
                    spool.append(Closed(streams.closing(name)))

            kept = not spool.failed.done() and await say_last(spool, append_last, publisher.flushed)
            if not kept:
                # Also of a stop that was asked for: its last records are missing.
                status = 1
            publishing.cancel()
            keeping.cancel()
            await asyncio.gather(publishing, keeping, return_exceptions=True)
            await credit.close()
            await channel.close()
            await self._engine.stop()
            # To close waits for the disk, which may hang.
            if kept:
                await spool.close()
        return status

    async def _serve(
        self,
        requests: Requests,
        books: Books,
        residency: Residency,
        adapters: Adapters,
        spool: Spool,
        stopped: asyncio.Event,
        channel: grpc.aio.Channel,
    ) -> int:
        settings = self._settings
        keys = Keys(channel, self._clock)
        service = InferenceService(
            requests,
            keys,
            books,
            self._shelf,
            self._engine.capabilities(),
            frozenset(settings.house_accounts.split(",")) - {""},
        )
        name = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
        names = [name]
        if settings.admin_secret_digest:
            names.append(adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name)
        server = grpcs.Server("inference", settings.inference_address, names)
        if settings.admin_secret_digest:
            adapters_pb2_grpc.add_AdapterServiceServicer_to_server(
                AdapterService(adapters, bytes.fromhex(settings.admin_secret_digest)), server.grpc
            )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server.grpc)
        await server.start()
        reading = asyncio.create_task(books.publish_for_ever(), name="readings")
        requests.admit(self._shelf)
        draining, closing, listening = asyncio.Event(), asyncio.Event(), asyncio.Event()
        http = asyncio.create_task(
            self._serve_http(requests, keys, draining, closing, listening), name="http door"
        )
        # Readiness is of both doors.
        opening = asyncio.create_task(listening.wait(), name="http door opens")
        await asyncio.wait((http, opening), return_when=asyncio.FIRST_COMPLETED)
        opening.cancel()
        await server.set_ready(True)
        log.info("ready", models=list(self._shelf.all()))
        parts = [reading, http]
        parts.append(asyncio.create_task(residency.meter_for_ever(), name="residency"))
        if self._dozing is not None:
            parts.append(asyncio.create_task(self._dozing.watch_for_ever(), name="engine's idling"))
        status = await self._watch(requests, spool, parts, stopped)
        await server.set_ready(False)
        requests.close(
            errors.Unavailable(
                "this instance stops; ask again",
                reason="DRAINING",
                retry_after_ms=RETRY_AFTER_STOP_MS,
            )
        )
        draining.set()
        # A spool that cannot be written settles nothing: the next start does.
        if not spool.failed.done():
            await requests.drain(settings.drain_ms if status == 0 else SETTLE_LOST_MS)
        closing.set()
        for part in parts:
            if part is not http:
                part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        if not spool.failed.done():
            await books.settled_residual()
        await server.stop(1_000)
        return status

    async def _serve_http(
        self,
        requests: Requests,
        keys: Keys,
        draining: asyncio.Event,
        closing: asyncio.Event,
        listening: asyncio.Event,
    ) -> None:
        """The HTTP door and the batches sent through it, which begin nothing more from
        `draining` on, until `closing`; without an address there is none. `listening`: it is open.
        """
        settings = self._settings
        if not settings.http_address:
            listening.set()
            await closing.wait()
            return
        guard = Guard(keys)
        store = await asyncio.to_thread(BatchStore, settings.spool_dir / "batches")
        parser = None
        if settings.tool_parser:
            parser = await asyncio.to_thread(CallParser, settings.tool_parser, settings.model)
        bodies = Bodies(self._engine.encode, parser)
        lines = Lines(bodies, self._clock)
        places = yielded_places(settings.engine_requests)
        runner = BatchRunner(store, requests, keys, self._clock, places, lines.read, lines.tell)
        batch_routes = BatchRoutes(store, runner, guard, self._clock).routes
        door = HttpDoor(requests, guard, self._shelf, bodies, self._clock, batch_routes)
        serving = asyncio.create_task(
            web.serve(door.app, settings.http_address, closing, overloaded, listening)
        )
        try:
            runner.resume()
            waiting = asyncio.create_task(draining.wait())
            await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            runner.close()
            await serving
        finally:
            serving.cancel()
            await runner.stop()

    async def _watch(
        self,
        requests: Requests,
        spool: Spool,
        parts: Sequence[asyncio.Task[None]],
        stopped: asyncio.Event,
    ) -> int:
        """Wait for the first that ends the service; 0 only for a stop that was asked for."""
        stop = asyncio.create_task(stopped.wait(), name="stop signal")
        lost = asyncio.create_task(self._engine.wait_lost(), name="engine watch")
        watched: list[asyncio.Future[Any]] = [stop, lost, spool.failed, requests.broken, *parts]
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, lost):
            task.cancel()
        if spool.failed.done():
            log.error("stopping: the spool cannot be written", error=str(spool.failed.result()))
        elif requests.broken.done():
            log.error("stopping: a request broke", error=str(requests.broken.result()))
        elif lost.done() and not lost.cancelled():
            log.error("stopping: the engine is lost")
        elif ended := [part for part in parts if part.done()]:
            for part in ended:
                log.error(f"stopping: {part.get_name()} ended", error=str(part.exception()))
        else:
            log.info("stopping: asked to")
            return 0
        return 1


def _salt_key(directory: Path) -> bytes:
    """The secret that prefix-cache salts are made with; made once, kept beside the spool."""
    path = directory / "salt.key"
    with suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()
