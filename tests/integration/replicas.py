"""More servers of pricing on a stack's database, to be killed one by one, and callers that use
them all as one: a call goes to the next server, and to another one while that one is away.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.free_port import free_port

from inference.adapters.hold_asks import HoldAsks
from kernel import grpcs
from tollbook.pricing.v1 import holds_pb2, money_pb2, pricing_pb2_grpc
from tollbook.stack import Stack
from tollbook.stack.ports import HOST

TIMEOUT_S: Final = 90.0
T = TypeVar("T")


class Replicas:
    """Servers of pricing. `kill` is a kill -9; `start` brings one back under its address."""

    def __init__(self, stack: Stack, count: int) -> None:
        self._environment = {**os.environ, **stack.environment()}
        self._addresses = [f"{HOST}:{free_port()}" for _ in range(count)]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self._channels = [grpcs.channel(address) for address in self._addresses]
        self._stubs: list[Any] = [
            pricing_pb2_grpc.PricingServiceStub(channel) for channel in self._channels
        ]
        self._turn = itertools.count()
        self._asked = itertools.count()
        self._streams = [HoldAsks(channel) for channel in self._channels]

    def channel(self, index: int) -> grpc.aio.Channel:
        """The way to one of them alone."""
        return self._channels[index]

    def start(self, index: int) -> None:
        """Start a server; `ready` waits for it."""
        environment = {**self._environment, "TOLLBOOK_PRICING_ADDRESS": self._addresses[index]}
        self._processes[index] = subprocess.Popen(
            (sys.executable, "-m", "pricing.entrypoints.server"),
            env=environment,
            stderr=subprocess.DEVNULL,
        )

    def kill(self, index: int) -> None:
        """Kill a server where it stands."""
        process, self._processes[index] = self._processes[index], None
        if process is not None:
            process.kill()
            process.wait()

    async def ready(self, index: int) -> None:
        """Wait until a server takes calls."""
        stub: Any = health_pb2_grpc.HealthStub(self._channels[index])
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.aio.AioRpcError:
                pass
            assert time.monotonic() < deadline, "a replica is not ready"
            await asyncio.sleep(0.1)

    async def call(self, ask: Callable[[Any, float], Awaitable[T]]) -> T:
        """Ask the next server; another one while it is away or dies over it."""
        return await self._of_any(lambda index: ask(self._stubs[index], 20))

    async def _of_any(self, ask: Callable[[int], Awaitable[T]]) -> T:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return await ask(next(self._turn) % len(self._stubs))
            except grpc.aio.AioRpcError as error:
                gone = error.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.StatusCode.CANCELLED,
                )
                if not gone or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.02)

    async def reserve(
        self, account_id: str, event_id: str, amount_pico: int, ttl_ms: int, **more: Any
    ) -> holds_pb2.ReserveResponse | None:
        """A hold, or None when there is no credit for it or a limit is in the way.

        Every other one is asked for on the server's stream, the rest by calls.
        """
        request = holds_pb2.ReserveRequest(
            account_id=account_id,
            event_id=event_id,
            amount=money_pb2.Amount(currency="USD", amount_pico=str(amount_pico)),
            ttl_ms=ttl_ms,
            **more,
        )
        try:
            if next(self._asked) % 2:
                return await self._of_any(
                    lambda index: self._streams[index].reserve(request, 20_000)
                )
            return await self.call(lambda stub, limit_s: stub.Reserve(request, timeout=limit_s))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return None

    async def extend(
        self, account_id: str, hold_id: str, ttl_ms: int, amount_pico: int | None = None
    ) -> None:
        """Give a hold a new end, and a larger amount."""
        request = holds_pb2.ExtendRequest(account_id=account_id, hold_id=hold_id, ttl_ms=ttl_ms)
        if amount_pico is not None:
            request.amount.currency, request.amount.amount_pico = "USD", str(amount_pico)
        await self.call(lambda stub, limit_s: stub.Extend(request, timeout=limit_s))

    async def release(self, account_id: str, hold_id: str) -> bool:
        """Give a hold up; False when it was gone."""
        request = holds_pb2.ReleaseRequest(account_id=account_id, hold_id=hold_id)
        answer = await self.call(lambda stub, limit_s: stub.Release(request, timeout=limit_s))
        return bool(answer.released)

    async def holds(self, account_id: str) -> holds_pb2.ListHoldsResponse:
        """An account's open holds."""
        request = holds_pb2.ListHoldsRequest(account_id=account_id, page_size=1000)
        return await self.call(lambda stub, limit_s: stub.ListHolds(request, timeout=limit_s))

    async def until_free(self, account_id: str, limit_s: float) -> float:
        """Wait until the account holds nothing; how many seconds that took."""
        began = time.monotonic()
        while (await self.holds(account_id)).open_holds:
            assert time.monotonic() - began < limit_s, "a hold outlived its time"
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def close(self) -> None:
        """End all servers that were started here."""
        for index in range(len(self._processes)):
            self.kill(index)
        for stream in self._streams:
            await stream.close()
        for channel in self._channels:
            await channel.close()


@asynccontextmanager
async def replicas(stack: Stack, count: int = 3) -> AsyncIterator[Replicas]:
    """So many servers, all ready."""
    made = Replicas(stack, count)
    try:
        for index in range(count):
            made.start(index)
        for index in range(count):
            await made.ready(index)
        yield made
    finally:
        await made.close()
