"""AskHolds, both ends of it, over real gRPC on the loopback: what is asked of methods that the test
holds the strings of is told as calls of their own would tell it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from tests.integration.free_port import free_port

from inference.adapters.hold_asks import HoldAsks
from kernel import errors, grpcs
from pricing.adapters import hold_stream
from tollbook.pricing.v1 import holds_pb2, pricing_pb2_grpc

TIMEOUT_MS = 60_000


class Pricing(pricing_pb2_grpc.PricingServiceServicer):
    """Holds without books: the event's id says what becomes of an ask."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.called: list[str] = []
        self.cancelled: list[str] = []
        self.changed = asyncio.Condition()
        self.proceed = asyncio.Event()
        self.broken = asyncio.Event()
        self.streams = hold_stream.Streams(
            {"reserve": self.reserve, "extend": self.extend, "release": self.release}
        )

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(is_so)

    async def _tell(self, where: list[str], what: str) -> None:
        async with self.changed:
            where.append(what)
            self.changed.notify_all()

    async def reserve(self, request: holds_pb2.ReserveRequest, context: Any) -> Any:
        await self._tell(self.seen, request.event_id)
        if request.event_id.startswith("slow"):
            try:
                await self.proceed.wait()
            except asyncio.CancelledError:
                await self._tell(self.cancelled, request.event_id)
                raise
        if request.event_id == "poor":
            raise errors.QuotaExceeded(
                "no credit",
                reason="NO_CREDIT",
                violations=(errors.QuotaViolation("account:a", "it has 0"),),
            )
        if request.event_id == "defect":
            raise ZeroDivisionError
        return holds_pb2.ReserveResponse(hold=holds_pb2.Hold(hold_id=f"hold-{request.event_id}"))

    async def extend(self, request: holds_pb2.ExtendRequest, context: Any) -> Any:
        return holds_pb2.ExtendResponse(hold=holds_pb2.Hold(hold_id=request.hold_id))

    async def release(self, request: holds_pb2.ReleaseRequest, context: Any) -> Any:
        return holds_pb2.ReleaseResponse(released=request.hold_id == "there")

    async def Reserve(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.called.append(request.event_id)
        return await self.reserve(request, context)

    async def AskHolds(  # type: ignore[override]  # noqa: N802
        self, requests: Any, context: Any
    ) -> None:
        serving = asyncio.create_task(self.streams.serve(context))
        breaking = asyncio.create_task(self.broken.wait())
        try:
            await asyncio.wait((serving, breaking), return_when=asyncio.FIRST_COMPLETED)
            if breaking.done():
                self.broken.clear()
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            await serving
        finally:
            serving.cancel()
            breaking.cancel()
            await asyncio.gather(serving, breaking, return_exceptions=True)


def old_pricing() -> grpc.GenericRpcHandler:
    """The service as it was before there were streams."""

    async def reserve(request: Any, context: Any) -> holds_pb2.ReserveResponse:
        return holds_pb2.ReserveResponse(hold=holds_pb2.Hold(hold_id="by call"))

    by_call: Any = grpc.unary_unary_rpc_method_handler(
        reserve,
        holds_pb2.ReserveRequest.FromString,
        holds_pb2.ReserveResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        "tollbook.pricing.v1.PricingService", {"Reserve": by_call}
    )


@asynccontextmanager
async def serving(servicer: Any, address: str) -> AsyncIterator[grpcs.Server]:
    server = grpcs.Server("pricing", address)
    pricing_pb2_grpc.add_PricingServiceServicer_to_server(servicer, server.grpc)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@asynccontextmanager
async def both_ends() -> AsyncIterator[tuple[Pricing, HoldAsks, Any, grpcs.Server]]:
    address = f"127.0.0.1:{free_port()}"
    pricing = Pricing()  # type: ignore[abstract]  # only the calls that a test makes
    async with serving(pricing, address) as server, grpcs.channel(address) as channel:
        asks = HoldAsks(channel)
        try:
            yield pricing, asks, pricing_pb2_grpc.PricingServiceStub(channel), server
        finally:
            await asks.close()


def reserving(event_id: str, account_id: str = "a") -> holds_pb2.ReserveRequest:
    request = holds_pb2.ReserveRequest(account_id=account_id, event_id=event_id)
    request.amount.currency, request.amount.amount_pico = "USD", "1"
    return request


def numbered(number: int, event_id: str, timeout_ms: int = 0) -> holds_pb2.HoldAsk:
    return holds_pb2.HoldAsk(ask_id=number, reserve=reserving(event_id), timeout_ms=timeout_ms)


async def test_answers_come_when_they_are_there_whatever_waits_before_them() -> None:
    async with both_ends() as (pricing, asks, _, _):
        slow = asyncio.create_task(asks.reserve(reserving("slow"), TIMEOUT_MS))
        await pricing.until(lambda: pricing.seen == ["slow"])
        answers = await asyncio.gather(
            *(asks.reserve(reserving(f"e{n}"), TIMEOUT_MS) for n in range(2_000))
        )
        assert [answer.hold.hold_id for answer in answers] == [f"hold-e{n}" for n in range(2_000)]
        extended = await asks.extend(
            holds_pb2.ExtendRequest(account_id="a", hold_id="h"), TIMEOUT_MS
        )
        assert extended.hold.hold_id == "h"
        for hold_id in ("there", "gone"):
            release = holds_pb2.ReleaseRequest(account_id="a", hold_id=hold_id)
            assert (await asks.release(release, TIMEOUT_MS)).released is (hold_id == "there")
        assert not slow.done()
        pricing.proceed.set()
        assert (await slow).hold.hold_id == "hold-slow"
        assert pricing.called == []


@pytest.mark.parametrize(
    ("event_id", "account_id"), [("poor", "a"), ("defect", "a"), ("one", ""), ("", "a")]
)
async def test_an_error_is_told_as_by_a_call_and_the_stream_goes_on(
    event_id: str, account_id: str
) -> None:
    async with both_ends() as (_, asks, stub, _):
        request = reserving(event_id, account_id)
        told: Any = await asyncio.gather(
            asks.reserve(request, TIMEOUT_MS),
            asks.reserve(reserving("good"), TIMEOUT_MS),
            stub.Reserve(request),
            return_exceptions=True,
        )
        by_stream, good, by_call = told
        assert isinstance(by_stream, grpc.aio.AioRpcError)
        assert isinstance(by_call, grpc.aio.AioRpcError)
        assert (by_stream.code(), by_stream.details()) == (by_call.code(), by_call.details())
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.QuotaFailure,
            error_details_pb2.BadRequest,
        ):
            assert grpcs.details_of(by_stream, kind) == grpcs.details_of(by_call, kind)
        assert isinstance(good, holds_pb2.ReserveResponse)


async def test_an_ask_that_takes_too_long_is_not_decided_and_told_so() -> None:
    async with both_ends() as (pricing, asks, stub, _):
        call = stub.AskHolds()
        await call.write(holds_pb2.AskHoldsRequest(asks=[numbered(1, "slow", 20)]))
        (answer,) = (await call.read()).answers
        assert answer.WhichOneof("answer") == "error"
        assert pricing.cancelled == ["slow"]
        call.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asks.reserve(reserving("slow"), 20)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_what_its_caller_gave_up_is_not_decided() -> None:
    async with both_ends() as (pricing, asks, _, _):
        slow = asyncio.create_task(asks.reserve(reserving("slow"), TIMEOUT_MS))
        await pricing.until(lambda: pricing.seen == ["slow"])
        slow.cancel()
        await pricing.until(lambda: pricing.cancelled == ["slow"])
        await asks.reserve(reserving("next"), TIMEOUT_MS)


async def test_a_caller_that_leaves_takes_its_asks_with_it() -> None:
    async with both_ends() as (pricing, _, stub, _):
        call = stub.AskHolds()
        await call.write(holds_pb2.AskHoldsRequest(asks=[numbered(1, "slow")]))
        await pricing.until(lambda: pricing.seen == ["slow"])
        call.cancel()
        await pricing.until(lambda: pricing.cancelled == ["slow"])


async def test_a_number_that_is_open_and_bytes_that_are_no_message_end_the_stream() -> None:
    async with both_ends() as (_, _, stub, _):
        call = stub.AskHolds()
        await call.write(holds_pb2.AskHoldsRequest(asks=[numbered(1, "slow"), numbered(1, "slow")]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "ask 1 is open already" in (caught.value.details() or "")
    address = f"127.0.0.1:{free_port()}"
    async with (
        serving(Pricing(), address),  # type: ignore[abstract]
        grpcs.channel(address) as channel,
    ):
        raw: Any = channel.stream_stream("/tollbook.pricing.v1.PricingService/AskHolds")()
        await raw.write(b"\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw.read()
        info = grpcs.details_of(caught.value, error_details_pb2.ErrorInfo)
        assert info is not None
        assert info.reason == "MALFORMED_REQUEST"


async def test_no_more_is_read_than_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold_stream, "MAX_OPEN", 3)
    async with both_ends() as (pricing, asks, stub, _):
        waiting = [
            asyncio.create_task(asks.reserve(reserving(f"slow-{n}"), TIMEOUT_MS)) for n in range(9)
        ]
        await pricing.until(lambda: len(pricing.seen) == 3)
        # A whole way there and back: what could be read would have been.
        await stub.Reserve(reserving("other"))
        assert len(pricing.seen) == 4
        pricing.proceed.set()
        assert len(await asyncio.gather(*waiting)) == 9


async def test_a_server_that_ends_answers_what_it_read() -> None:
    async with both_ends() as (pricing, asks, _, server):
        slow = asyncio.create_task(asks.reserve(reserving("slow"), TIMEOUT_MS))
        await pricing.until(lambda: pricing.seen == ["slow"])
        pricing.streams.end()
        stopping = asyncio.create_task(server.stop(60_000))
        pricing.proceed.set()
        assert (await slow).hold.hold_id == "hold-slow"
        async with asyncio.timeout(60):
            await stopping
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asks.reserve(reserving("late"), TIMEOUT_MS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_asks_of_a_broken_stream_go_once_more_with_the_same_ids() -> None:
    async with both_ends() as (pricing, asks, _, _):
        waiting = [
            asyncio.create_task(asks.reserve(reserving(f"slow-{n}"), TIMEOUT_MS)) for n in range(3)
        ]
        await pricing.until(lambda: len(pricing.seen) == 3)
        pricing.broken.set()
        await pricing.until(lambda: len(pricing.seen) == 6)
        assert sorted(pricing.seen[3:]) == sorted(pricing.seen[:3])
        pricing.proceed.set()
        answers = await asyncio.gather(*waiting)
        assert [answer.hold.hold_id for answer in answers] == [f"hold-slow-{n}" for n in range(3)]
        assert pricing.called == []


async def test_an_ask_is_tried_on_two_streams_and_no_more() -> None:
    async with both_ends() as (pricing, asks, _, _):
        slow = asyncio.create_task(asks.reserve(reserving("slow"), TIMEOUT_MS))
        for count in (1, 2):
            await pricing.until(lambda count=count: len(pricing.seen) == count)  # type: ignore[misc]
            pricing.broken.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await slow
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert pricing.seen == ["slow", "slow"]


async def test_a_server_without_streams_is_asked_by_calls() -> None:
    address = f"127.0.0.1:{free_port()}"
    server = grpcs.Server("pricing", address)
    server.grpc.add_generic_rpc_handlers((old_pricing(),))
    await server.start()
    async with grpcs.channel(address) as channel:
        asks = HoldAsks(channel)
        answers = await asyncio.gather(
            *(asks.reserve(reserving(f"e{n}"), TIMEOUT_MS) for n in range(3))
        )
        assert {answer.hold.hold_id for answer in answers} == {"by call"}
    await server.stop(0)


async def test_nobody_waits_for_a_stream_whose_channel_was_closed() -> None:
    async with both_ends() as (pricing, asks, _, _):
        slow = asyncio.create_task(asks.reserve(reserving("slow"), TIMEOUT_MS))
        await pricing.until(lambda: pricing.seen == ["slow"])
        await asks.close()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await slow
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
