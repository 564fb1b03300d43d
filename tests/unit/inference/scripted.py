"""An engine that does what a test tells it, one event at a time.

For what a real engine cannot be made to do at a chosen instant: fail on one request, die between
two tokens, go on after an abort.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inference import engine as port
from inference.adapters.spool import Spool
from inference.adapters.spool_segments import Limits
from inference.app import credit
from inference.app.books import Books
from inference.app.gate import Gate
from inference.app.order import Caller, World
from inference.app.requests import Requests
from inference.app.shelf import Served, Shelf
from inference.app.streams import Streams
from inference.domain.claims import NO_DOUBT, Doubt
from inference.domain.records import Booted
from kernel import errors, telemetry
from kernel.clock import SystemClock
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

CONTEXT = 64
ENGINE_ID = "test/boot"


@dataclass
class Running:
    """One request in the engine: events go in here."""

    job: port.Job
    events: asyncio.Queue[port.Event | Exception] = field(default_factory=asyncio.Queue)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)


class ScriptedEngine:
    """Counts what it hands out, as an engine does; `lost` makes it dead."""

    def __init__(self) -> None:
        self.generation_tokens = 0
        self.running: dict[str, Running] = {}
        self.arrived = asyncio.Event()
        self.rendering = asyncio.Event()
        self.rendering.set()
        self.runs = 0
        # Of one that embeds.
        self.vector_size = 0
        self.embedding: port.EmbedJob | None = None
        self.vectors: asyncio.Queue[port.Vectors | Exception | None] = asyncio.Queue()
        self.told_to_stop = asyncio.Event()
        self.taken = asyncio.Event()

    async def start(self) -> int:
        return 0

    async def stop(self) -> None:
        pass

    def capabilities(self) -> port.Capabilities:
        return port.Capabilities(
            context_tokens=CONTEXT, adapters=False, vector_size=self.vector_size
        )

    def counters(self) -> port.Counters:
        return port.Counters(self.generation_tokens, 0)

    async def render(self, spec: inference.GenerationSpec, cache_salt: str) -> port.Prompt:
        await self.rendering.wait()
        ids = list(spec.tokens.token_ids)
        if len(ids) >= CONTEXT:
            raise errors.InvalidArgument("too long", reason="INVALID_PROMPT")
        return port.Prompt(ids, cache_salt)

    async def generate(self, job: port.Job) -> AsyncIterator[port.Event]:
        running = Running(job)
        self.running[job.engine_request_id] = running
        self.runs += 1
        self.arrived.set()
        while True:
            event = await running.events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, port.Ended):
                return

    async def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def check_ids(self, token_ids: Sequence[int], field: str) -> None:
        if max(token_ids) > 1_000:
            raise errors.InvalidArgument.of_field(field, "unknown id")

    def check_dimensions(self, dimensions: int) -> None:
        if dimensions > self.vector_size:
            raise errors.InvalidArgument.of_field("dimensions", "too many")

    async def embed(self, job: port.EmbedJob) -> AsyncIterator[port.Vectors]:
        self.embedding = job
        self.runs += 1
        self.arrived.set()
        while (some := await self.vectors.get()) is not None:
            if isinstance(some, Exception):
                raise some
            yield some
            self.taken.set()

    def give(self, first: int, values: list[bytes], doubt: Doubt = NO_DOUBT) -> None:
        """Hand out vectors, and count their inputs."""
        job = self.embedding
        assert job is not None
        tokens = sum(map(len, job.inputs[first : first + len(values)]))
        self.generation_tokens += tokens + doubt.beyond_tokens
        self.vectors.put_nowait(port.Vectors(first, values, tokens, doubt))

    async def abort(self, engine_request_id: str) -> None:
        if self.vector_size:
            self.told_to_stop.set()
            return
        self.running[engine_request_id].aborted.set()

    async def add_adapter(self, name: str, path: str) -> None:
        raise NotImplementedError

    async def remove_adapter(self, name: str) -> None:
        raise NotImplementedError

    async def suspend(self) -> None:
        raise NotImplementedError

    async def resume(self) -> int:
        raise NotImplementedError

    async def wait_lost(self) -> None:
        await asyncio.Event().wait()

    # What a test tells it

    async def next_run(self) -> Running:
        """The newest request, once it is there."""
        await self.arrived.wait()
        self.arrived.clear()
        return list(self.running.values())[-1]

    def say(self, running: Running, choice: int, ids: list[int], cached: int = 0) -> None:
        """Hand out tokens."""
        self.generation_tokens += len(ids)
        running.events.put_nowait(port.Tokens(choice, ids, "x" * len(ids), cached))

    def finish(
        self, running: Running, reason: int = usage.FINISH_REASON_LENGTH, surplus: int = 0
    ) -> None:
        """End all choices."""
        self.generation_tokens += surplus
        for choice in range(running.job.choices):
            running.events.put_nowait(port.Finished(choice, reason, surplus if not choice else 0))
        running.events.put_nowait(port.Ended())


@dataclass
class ScriptedCredit:
    """Credit for everybody, until `refusal` is set; notes what becomes of each hold."""

    refusal: errors.TollbookError | None = None
    asked: list[credit.Request] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    given_back: list[str] = field(default_factory=list)

    async def hold(self, request: credit.Request) -> str:
        self.asked.append(request)
        if self.refusal is not None:
            raise self.refusal
        hold_id = f"hold of {request.event_id}"
        self.open.add(hold_id)
        return hold_id

    def settled(self, hold_id: str) -> None:
        self.open.discard(hold_id)

    def release(self, account_id: str, hold_id: str) -> None:
        self.open.discard(hold_id)
        self.given_back.append(hold_id)


@dataclass
class Bench:
    """A registry on a scripted engine and a real spool."""

    engine: ScriptedEngine
    spool: Spool
    streams: Streams
    books: Books
    requests: Requests
    credit: ScriptedCredit


def bench(
    folder: Path,
    limits: Limits | None = None,
    max_requests: int = 8,
    max_account_requests: int = 8,
    places: int = 64,
) -> Bench:
    """Put one together; the spool is running."""
    engine = ScriptedEngine()
    spool = Spool.open(folder, limits)
    streams = Streams(spool.journal, ENGINE_ID, 4)
    if ENGINE_ID not in spool.journal.engines:
        spool.append(Booted(ENGINE_ID))
    spool.start()
    clock = SystemClock()
    books = Books(spool, streams, engine, ENGINE_ID, clock)
    funds = ScriptedCredit()
    world = World(
        engine,
        ENGINE_ID,
        spool,
        streams,
        books,
        funds,
        Gate(places),
        clock,
        telemetry.tracer("test"),
    )
    requests = Requests(world, b"salt", max_requests, max_account_requests)
    books.in_flight = requests.in_flight
    spool.count_source = books.changed_count
    target = port.Target("tiny", "tiny", "")
    requests.admit(Shelf({"tiny": Served(target, usage.Provenance())}))
    return Bench(engine, spool, streams, books, requests, funds)


CALLER = Caller("acct", "project", "key")


def order(
    request_id: str = "r", prompt: int = 8, max_tokens: int = 40, n: int = 1
) -> inference.GenerationSpec:
    """A request."""
    return inference.GenerationSpec(
        request_id=request_id,
        model="tiny",
        tokens=inference.TokenPrompt(token_ids=range(prompt)),
        sampling=inference.SamplingParams(max_tokens=max_tokens, n=n),
    )
