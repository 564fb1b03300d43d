"""Callers of a service that is killed under them: what each was told, call after call."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import grpc.aio
from tests.integration.inference_service import Place, Service

from tollbook.inference.v1 import inference_pb2 as inference

WAIT_S: Final = 300
TRAILER: Final = "tollbook-usage-bin"


class House:
    """The service over its lives: killed, and started again, while callers come."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.kills: Counter[str] = Counter()
        self.up = asyncio.Event()
        self._lives: list[Service] = []

    @property
    def service(self) -> Service:
        return self._lives[-1]

    async def start(self) -> None:
        self._lives.append(Service(self.place))
        await self.service.ready()
        self.up.set()

    async def kill(self, what: str) -> None:
        """Kill a process with signal 9 and start the service again."""
        process = self.service.process
        self.up.clear()
        if what == "core":
            self.service.core().kill()
        else:
            process.kill()
        status = await asyncio.to_thread(process.wait, 120)
        assert status == (1 if what == "core" else -9), self.service.log.read_text()[-3000:]
        self.kills[what] += 1
        await self.start()

    async def end(self) -> None:
        if self._lives and self.service.process.poll() is None:
            self.service.process.kill()
        for life in self._lives:
            await life.ended()


@dataclass
class Told:
    """What callers of one request were told."""

    ids: int = 0
    summary: inference.UsageSummary | None = None
    left: bool = False
    refused: grpc.StatusCode | None = None

    def settle(self, summary: inference.UsageSummary) -> None:
        """Whoever is told of one request is told the same."""
        if self.summary is not None:
            assert self.summary == summary
        self.summary = summary


@dataclass
class Crowd:
    """All requests, by the id that they came under."""

    house: House
    told: dict[tuple[str, str], Told] = field(default_factory=dict)

    async def finally_(
        self, account: str, spec: inference.GenerationSpec, call: Callable[[Told], Awaitable[None]]
    ) -> None:
        """Call until there is an answer: what was never settled is asked again, by its id."""
        told = self.told.setdefault((account, spec.request_id), Told())
        deadline = time.monotonic() + WAIT_S
        while True:
            await asyncio.wait_for(self.house.up.wait(), WAIT_S)
            try:
                return await call(told)
            except grpc.aio.AioRpcError as error:
                trailing = dict(error.trailing_metadata() or ())
                if TRAILER in trailing:
                    return told.settle(inference.UsageSummary.FromString(trailing[TRAILER]))
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    told.left = True
                    return None
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    told.refused = error.code()
                    return None
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def once(
        self, account: str, spec: inference.GenerationSpec, timeout_s: float | None = None
    ) -> None:
        async def call(told: Told) -> None:
            answer = await self.house.service.once(spec, account, timeout=timeout_s)
            told.ids = max(told.ids, sum(len(choice.token_ids) for choice in answer.choices))
            told.settle(answer.usage)

        await self.finally_(account, spec, call)

    async def stream(
        self,
        account: str,
        spec: inference.GenerationSpec,
        leave_after: int | None = None,
        pause_s: float = 0.0,
        timeout_s: float | None = None,
    ) -> None:
        async def call(told: Told) -> None:
            stream = self.house.service.stream(spec, account, timeout=timeout_s)
            seen = chunks = 0
            async for message in stream:
                seen += len(message.delta.token_ids)
                told.ids = max(told.ids, seen)
                if message.HasField("usage"):
                    told.settle(message.usage)
                if message.HasField("delta"):
                    chunks += 1
                if leave_after is not None and chunks >= leave_after:
                    told.left = True
                    stream.cancel()
                    return
                # A slow reader is one that waits between reads: there is nothing to poll.
                await asyncio.sleep(pause_s)

        await self.finally_(account, spec, call)
