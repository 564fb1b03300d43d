"""The inference service as a process of its own, beside a real broker, for the tests of it.

Pricing's part is a few methods, keys and holds, served here over real gRPC: these tests need it
to go away at will, and none of them is about money.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openai import AsyncOpenAI
from tests.integration.free_port import free_port

from kernel import grpcs
from pricing.adapters.hold_stream import Streams
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.inference.v1 import inference_pb2_grpc
from tollbook.pricing.v1 import holds_pb2 as holds
from tollbook.pricing.v1 import pricing_pb2 as pricing
from tollbook.pricing.v1 import pricing_pb2_grpc
from tollbook.stack import HOUSE_ACCOUNT
from tollbook.usage.v1 import usage_pb2 as usage

ROOT = Path(__file__).resolve().parents[2]
TOPIC = "usage.events.v1"
PARTITIONS = 4
START_S = 300
# Whatever is waited for ends by its condition.
WAIT_S = 120


class Pricing(pricing_pb2_grpc.PricingServiceServicer):
    """The secret of each of ACCOUNTS, and no other; and holds for whoever asks."""

    async def ResolveKey(  # noqa: N802
        self, request: pricing.ResolveKeyRequest, context: Any
    ) -> pricing.ResolveKeyResponse:
        for account in (*ACCOUNTS, HOUSE_ACCOUNT):
            if hashlib.sha256(secret_of(account).encode()).digest() == request.secret_digest:
                return pricing.ResolveKeyResponse(
                    key_id=f"key-{account}", account_id=account, project_id="p", control_size=1
                )
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such key")
        raise AssertionError

    async def Reserve(  # noqa: N802
        self, request: holds.ReserveRequest, context: Any
    ) -> holds.ReserveResponse:
        """There is always credit here; what happens without is a test of the whole stack."""
        hold_id = hashlib.sha256(request.event_id.encode()).hexdigest()[:32]
        return holds.ReserveResponse(
            hold=holds.Hold(hold_id=hold_id, account_id=request.account_id)
        )

    async def Extend(  # noqa: N802
        self, request: holds.ExtendRequest, context: Any
    ) -> holds.ExtendResponse:
        return holds.ExtendResponse()

    async def Release(  # noqa: N802
        self, request: holds.ReleaseRequest, context: Any
    ) -> holds.ReleaseResponse:
        return holds.ReleaseResponse(released=True)

    async def AskHolds(  # type: ignore[override]  # noqa: N802
        self, requests: Any, context: Any
    ) -> None:
        methods: dict[str, Any] = {
            "reserve": self.Reserve,
            "extend": self.Extend,
            "release": self.Release,
        }
        await Streams(methods).serve(context)


# Sequences that run at once here, each with some steps' tokens.
INFERRED_MOST = 512
ACCOUNTS = tuple(f"acct-{number}" for number in range(16))


def secret_of(account: str) -> str:
    return f"secret-{account}"


class KeyServer:
    """Serves Pricing; `stop` and `start` as often as a test likes."""

    def __init__(self) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        # As the services' own servers: clients ping more often than gRPC's default allows.
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            )
        )
        pricing_pb2_grpc.add_PricingServiceServicer_to_server(Pricing(), server)  # type: ignore[abstract]
        assert server.add_insecure_port(self.address)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


@dataclass
class Place:
    """What a service is started with; the same place again is the same service restarted."""

    folder: Path
    kafka: str
    keys: str
    model: Path
    environment: dict[str, str] = field(default_factory=dict)
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    http: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")


class Service:
    """One process of the inference service."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.log = place.folder / "inference.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "inference.entrypoints.server"],
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'gen'}",
                    "TOLLBOOK_MODEL": str(place.model / "model"),
                    "TOLLBOOK_ADAPTERS": str(place.model / "adapters"),
                    "TOLLBOOK_KAFKA": place.kafka,
                    "TOLLBOOK_TOPIC": TOPIC,
                    "TOLLBOOK_PARTITIONS": str(PARTITIONS),
                    "TOLLBOOK_PRICING_ADDRESS": place.keys,
                    "TOLLBOOK_INFERENCE_ADDRESS": place.address,
                    "TOLLBOOK_HTTP_ADDRESS": place.http,
                    "TOLLBOOK_SPOOL_DIR": str(place.folder / "spool"),
                    "TOLLBOOK_HOUSE_ACCOUNTS": HOUSE_ACCOUNT,
                    **place.environment,
                },
            )
        self.channel = grpcs.channel(place.address)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    async def ready(self) -> None:
        health: Any = health_pb2_grpc.HealthStub(self.channel)
        deadline = time.monotonic() + START_S
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"inference ended: {self.log.read_text()[-3000:]}")
            try:
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.aio.AioRpcError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            await asyncio.sleep(0.1)

    def core(self) -> psutil.Process:
        """The engine's core process."""
        (core,) = psutil.Process(self.process.pid).children()
        return core

    async def end(self, signal_number: int = signal.SIGTERM) -> int:
        """Signal it and wait; gives the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return await self.ended()

    async def ended(self) -> int:
        status = await asyncio.to_thread(self.process.wait, WAIT_S)
        # Calls under way learn of its end by themselves; closing would cancel them first.
        await self.channel.close(WAIT_S)
        return status

    # Calls

    async def once(
        self, spec: inference.GenerationSpec, account: str = "acct-0", **options: Any
    ) -> inference.GenerateOnceResponse:
        answer: inference.GenerateOnceResponse = await self.stub.GenerateOnce(
            inference.GenerateOnceRequest(spec=spec), metadata=bearer(account), **options
        )
        return answer

    def stream(
        self,
        spec: inference.GenerationSpec,
        account: str = "acct-0",
        metadata: Sequence[tuple[str, str]] = (),
        **options: Any,
    ) -> Any:
        return self.stub.Generate(
            inference.GenerateRequest(spec=spec),
            metadata=(*bearer(account), *metadata),
            **options,
        )

    async def conservation(self) -> inference.GetConservationResponse:
        answer: inference.GetConservationResponse = await self.stub.GetConservation(
            inference.GetConservationRequest(), metadata=bearer(HOUSE_ACCOUNT)
        )
        return answer

    async def engine(self) -> inference.EngineConservation:
        """The running engine's account, when no request is under way."""
        return (await self._when(lambda now: not now.in_flight)).engines[-1]

    async def drained(self) -> None:
        """Return when no request is under way and the broker has every record."""
        await self._when(lambda now: not now.in_flight and not now.spool_backlog)

    async def _when(
        self, so: Callable[[inference.GetConservationResponse], bool]
    ) -> inference.GetConservationResponse:
        deadline = time.monotonic() + WAIT_S
        while not so(answer := await self.conservation()):
            assert time.monotonic() < deadline, answer
            await asyncio.sleep(0.05)
        return answer


@asynccontextmanager
async def serving(place: Place) -> AsyncIterator[Service]:
    """A service that is ready; ended with the block, also when it fails."""
    service = Service(place)
    try:
        await service.ready()
        # Who is ready answers at both doors.
        async with httpx.AsyncClient(base_url=f"http://{place.http}", timeout=60) as client:
            assert (await client.get("/v1/models")).status_code == 401
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        await service.ended()


def with_secret(secret: str) -> tuple[tuple[str, str], ...]:
    """Call metadata of whoever has it."""
    return (("authorization", f"Bearer {secret}"),)


def bearer(account: str) -> tuple[tuple[str, str], ...]:
    return with_secret(secret_of(account))


def openai_client(service: Service, account: str = "acct-0", retries: int = 0) -> AsyncOpenAI:
    """The official package's client of an account."""
    return AsyncOpenAI(
        base_url=f"http://{service.place.http}/v1",
        api_key=secret_of(account),
        max_retries=retries,
        timeout=120,
    )


def chat(
    text: str, request_id: str = "", model: str = "tiny", **sampling: Any
) -> inference.GenerationSpec:
    return inference.GenerationSpec(
        request_id=request_id,
        model=model,
        chat=inference.ChatPrompt(messages=[inference.ChatMessage(role="user", content=text)]),
        sampling=inference.SamplingParams(**sampling),
    )


def tokens(
    ids: Sequence[int], request_id: str = "", model: str = "tiny", **sampling: Any
) -> inference.GenerationSpec:
    return inference.GenerationSpec(
        request_id=request_id,
        model=model,
        tokens=inference.TokenPrompt(token_ids=ids),
        sampling=inference.SamplingParams(**sampling),
    )


@dataclass(frozen=True)
class Received:
    """A record of the topic."""

    partition: int
    offset: int
    key: str
    headers: dict[str, bytes]
    record: usage.UsageRecord

    @property
    def event(self) -> usage.UsageEvent:
        return usage.UsageEvent.FromString(self.record.usage_event)


async def topic(kafka: str) -> list[Received]:
    """Everything that is in the topic now, partition after partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka, auto_offset_reset="none", enable_auto_commit=False
    )
    await consumer.start()
    found: list[Received] = []
    try:
        partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.assign([partition])
            consumer.seek(partition, 0)
            at = 0
            while at < ends[partition]:
                batches = await consumer.getmany(partition, timeout_ms=5_000)
                for message in batches.get(partition, []):
                    at = message.offset + 1
                    found.append(
                        Received(
                            partition.partition,
                            message.offset,
                            (message.key or b"").decode(),
                            dict(message.headers),
                            usage.UsageRecord.FromString(message.value),
                        )
                    )
    finally:
        await consumer.stop()
    return found


def unique(received: Sequence[Received]) -> list[Received]:
    """Each record once: what the ledger makes of resends."""
    seen: dict[tuple[str, int], Received] = {}
    for item in received:
        key = (item.record.stream_id, item.record.stream_seq)
        if key in seen:
            # A resend is the same record in the same place.
            assert seen[key].record == item.record
            assert seen[key].partition == item.partition
        seen.setdefault(key, item)
    return list(seen.values())


def events_of(received: Sequence[Received]) -> dict[tuple[str, str], usage.UsageEvent]:
    """Events by identity; fails when one identity has two records that are not a resend."""
    found: dict[tuple[str, str], usage.UsageEvent] = {}
    for item in unique(received):
        if item.record.usage_event:
            event = item.event
            key = (event.account_id, event.event_id)
            assert key not in found, f"{key} is twice in the topic"
            found[key] = event
    return found


def output_of(event: usage.UsageEvent) -> int:
    return sum(q.amount for q in event.quantities if q.direction == usage.DIRECTION_OUT)


def metered_of(event: usage.UsageEvent) -> int:
    """What the engine's own counter has of an event."""
    embedded = sum(q.amount for q in event.quantities if q.token_kind == usage.TOKEN_KIND_EMBEDDING)
    return output_of(event) + embedded


def undelivered_of(event: usage.UsageEvent) -> int:
    """Of the output, what no caller was given."""
    return sum(q.undelivered_amount for q in event.quantities if q.direction == usage.DIRECTION_OUT)


def final_residuals(received: Sequence[Received]) -> dict[str, int]:
    """For each engine with a final reading in the topic: its counter less all that is
    accounted for there. What an auditor computes; all must be 0.
    """
    settled: dict[str, int] = {}
    for event in events_of(received).values():
        settled[event.engine_id] = settled.get(event.engine_id, 0) + metered_of(event)
    residuals: dict[str, int] = {}
    for item in unique(received):
        reading = item.record.engine_reading
        if reading.final:
            waste = sum(item.tokens for item in reading.waste)
            residuals[reading.engine_id] = (
                reading.generation_tokens - waste - settled.get(reading.engine_id, 0)
            )
    return residuals


def gaps(received: Sequence[Received]) -> list[str]:
    """Streams whose numbers are not 0, 1, 2, ... or whose closing record says otherwise."""
    streams: dict[str, list[usage.UsageRecord]] = {}
    for item in unique(received):
        streams.setdefault(item.record.stream_id, []).append(item.record)
    wrong = []
    for name, stream in streams.items():
        numbers = [record.stream_seq for record in stream]
        if numbers != list(range(len(stream))):
            wrong.append(f"{name}: {numbers}")
        for record in stream:
            if record.HasField("stream_close") and (
                record is not stream[-1] or record.stream_close.last_seq != len(stream) - 2
            ):
                wrong.append(f"{name}: closed at {record.stream_close.last_seq}")
    return wrong


def check_conserved(received: Sequence[Received]) -> set[str]:
    """Nothing is missing in the topic and nothing is too much; gives the engines that ended."""
    assert gaps(received) == []
    for item in unique(received):
        # Beyond a dead engine's last recorded counter no more than one write to the disk holds.
        assert item.record.engine_reading.inferred_tokens <= INFERRED_MOST
    residuals = final_residuals(received)
    assert set(residuals.values()) == {0}
    return set(residuals)


async def end_whole(service: Service) -> None:
    """End a service in order: whatever was asked of it, all of it is accounted for."""
    assert (await service.engine()).residual_tokens == 0
    assert await service.end() == 0
    check_conserved(await topic(service.place.kafka))


async def eventually_in_topic(
    kafka: str, keys: set[tuple[str, str]], timeout_s: float = WAIT_S
) -> list[Received]:
    """The topic, once it has events of all these identities."""
    deadline = time.monotonic() + timeout_s
    while True:
        received = await topic(kafka)
        missing = keys - set(events_of(received))
        if not missing:
            return received
        assert time.monotonic() < deadline, f"never came: {sorted(missing)[:5]}"
        await asyncio.sleep(0.1)
