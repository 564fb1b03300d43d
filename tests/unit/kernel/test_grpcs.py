"""The gRPC door, over a real server on the loopback: errors, rules, health, reflection, drain."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.integration.free_port import free_port

from kernel import errors, grpcs, telemetry
from tollbook.ledger.v1 import ledger_pb2, ledger_pb2_grpc

SERVICE = "tollbook.ledger.v1.LedgerService"
WAIT_S = 60


class Ledger(ledger_pb2_grpc.LedgerServiceServicer):
    """Does what the test says, so that what the door makes of it can be seen."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.answer: ledger_pb2.GetEntryResponse = ledger_pb2.GetEntryResponse(leaf=b"leaf")
        self.delegate: Any = None
        self.seen: list[Any] = []
        self.entered = asyncio.Event()
        self.proceed = asyncio.Event()
        self.closed = asyncio.Event()
        self.trace_ids: list[str] = []

    async def GetEntry(self, request: Any, context: Any) -> ledger_pb2.GetEntryResponse:  # noqa: N802
        self.seen.append(request)
        self.trace_ids.append(telemetry.carrier_of().get("traceparent", ""))
        if self.error is not None:
            raise self.error
        return await self.delegate(request, context) if self.delegate else self.answer

    async def GetCheckpoint(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.entered.set()
        await self.proceed.wait()
        return ledger_pb2.GetCheckpointResponse(note=b"late")

    async def ReadEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        try:
            for position in range(request.from_position, request.to_position or 1_000_000):
                yield ledger_pb2.ReadEventsResponse(first_position=position)
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


class Loopback:
    """A server with that ledger, and a channel to it."""

    def __init__(
        self, address: str, ledger: Ledger, server: grpcs.Server, channel: grpc.aio.Channel
    ) -> None:
        self.address = address
        self.ledger = ledger
        self.server = server
        self.channel = channel
        self.stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)

    async def failure(self, error: BaseException) -> status_pb2.Status:
        """The status that a caller gets when the method raises `error`."""
        self.ledger.error = error
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub.GetEntry(ledger_pb2.GetEntryRequest(log="control"))
        return rich(caught.value)


def rich(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status in the trailing metadata, checked against the call's own."""
    packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(packed)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return status


async def drain(call: Any, positions: list[int]) -> None:
    """Read a stream to its end or its error."""
    async for answer in call:
        positions.append(answer.first_position)


def detail(status: status_pb2.Status, kind: Any) -> Any:
    """The one detail of a kind."""
    found = [any_ for any_ in status.details if any_.Is(kind.DESCRIPTOR)]
    assert len(found) == 1, f"{kind.__name__} in {status}"
    message = kind()
    found[0].Unpack(message)
    return message


@asynccontextmanager
async def running() -> AsyncIterator[Loopback]:
    address = f"127.0.0.1:{free_port()}"
    ledger = Ledger()  # type: ignore[abstract]  # only the calls that a test makes
    server = grpcs.Server("test", address, [SERVICE])
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger, server.grpc)
    await server.start()
    async with grpcs.channel(address) as channel:
        try:
            yield Loopback(address, ledger, server, channel)
        finally:
            ledger.proceed.set()
            await server.stop(drain_ms=1000)


CODES = [
    (errors.InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.FailedPrecondition, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.OutOfRange, grpc.StatusCode.OUT_OF_RANGE),
    (errors.QuotaExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unimplemented, grpc.StatusCode.UNIMPLEMENTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlinePassed, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Internal, grpc.StatusCode.INTERNAL),
]


async def test_every_error_of_the_tree_has_its_code_reason_and_metadata() -> None:
    # Of the module alone: a client's class for what it was told is none that a service raises.
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    assert {kind for kind, _ in CODES} == {
        kind for kind in tree if errors.TollbookError in kind.__bases__
    }
    async with running() as loop:
        for kind, code in CODES:
            status = await loop.failure(
                kind("what\nwas wrong: ä", "SOME_REASON", {"log": "usage-1"})
            )
            assert status.code == code.value[0]
            assert status.message == "what\nwas wrong: ä"
            info = detail(status, error_details_pb2.ErrorInfo)
            assert (info.reason, info.domain) == ("SOME_REASON", "tollbook")
            assert dict(info.metadata) == {"log": "usage-1"}


async def test_a_subclass_of_an_error_keeps_its_code() -> None:
    class NoSuchLog(errors.NotFound):
        pass

    async with running() as loop:
        status = await loop.failure(NoSuchLog("no such log"))
    assert status.code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_the_details_that_fit_each_error() -> None:
    async with running() as loop:
        status = await loop.failure(errors.Unavailable("busy", retry_after_ms=1500))
        assert detail(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1500
        status = await loop.failure(
            errors.QuotaExceeded(
                "no credit", violations=(errors.QuotaViolation("account:acme", "credit is spent"),)
            )
        )
        quota = detail(status, error_details_pb2.QuotaFailure).violations
        assert [(q.subject, q.description) for q in quota] == [("account:acme", "credit is spent")]
        status = await loop.failure(
            errors.InvalidArgument(
                "bad card", violations=(errors.FieldViolation("line 3, column 7", "no such unit"),)
            )
        )
        bad = detail(status, error_details_pb2.BadRequest).field_violations
        assert [(b.field, b.description) for b in bad] == [("line 3, column 7", "no such unit")]


async def test_a_thousand_violations_still_reach_the_caller() -> None:
    """Trailing metadata has a limit; past it gRPC would replace the status by one of its own."""
    many = tuple(
        errors.FieldViolation(f"line {n}, column 1", "ä price is a decimal number " * 20)
        for n in range(1000)
    )
    async with running() as loop:
        status = await loop.failure(
            errors.InvalidArgument("ä" * 50_000, "BAD_CARD", {"card": "x" * 5000}, many)
        )
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    bad = detail(status, error_details_pb2.BadRequest).field_violations
    assert bad[0].field == "line 0, column 1"
    assert "more" in bad[-1].description
    assert detail(status, error_details_pb2.ErrorInfo).reason == "BAD_CARD"


async def test_a_defect_is_internal_and_tells_the_caller_nothing_of_our_insides() -> None:
    async with running() as loop:
        status = await loop.failure(RuntimeError("password=hunter2 in /srv/secret.py"))
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "hunter2" not in str(status)
    assert "secret.py" not in str(status)


async def test_a_part_that_is_away_is_worth_another_try() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        async with running() as loop, grpcs.channel(nobody) as away:
            elsewhere: Any = ledger_pb2_grpc.LedgerServiceStub(away)

            async def ask(request: Any, context: Any) -> Any:
                return await elsewhere.GetEntry(request)

            loop.ledger.delegate = ask
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await loop.stub.GetEntry(ledger_pb2.GetEntryRequest(log="control"))
    status = rich(caught.value)
    assert status.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0


async def test_a_defect_midway_of_a_stream_is_internal_too() -> None:
    async with running() as loop:
        loop.ledger.error = RuntimeError("hunter2")
        call = loop.stub.ReadEvents(ledger_pb2.ReadEventsRequest(log="control", to_position=2))
        got: list[int] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await drain(call, got)
        assert got == [0, 1]
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "hunter2" not in str(caught.value)


async def test_the_rules_beside_the_fields_are_checked_before_the_method_is_called() -> None:
    async with running() as loop:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await loop.stub.GetEntry(ledger_pb2.GetEntryRequest(log="", position=-1))
        status = rich(caught.value)
        assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        fields = {b.field for b in detail(status, error_details_pb2.BadRequest).field_violations}
        assert fields == {"log", "position"}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await drain(
                loop.stub.ReadEvents(ledger_pb2.ReadEventsRequest(log="x" * 65, max_batch=20_001)),
                [],
            )
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert loop.ledger.seen == []
        answer = await loop.stub.GetEntry(ledger_pb2.GetEntryRequest(log="control"))
        assert answer.leaf == b"leaf"


def test_check_names_nested_and_repeated_fields() -> None:
    message = ledger_pb2.ListLogsResponse(
        logs=[
            ledger_pb2.LogState(log="a"),
            ledger_pb2.LogState(log="b", pins=[ledger_pb2.Pin(from_position=-5)]),
        ]
    )
    with pytest.raises(errors.InvalidArgument) as caught:
        grpcs.check(message)
    assert caught.value.violations[0].field == "logs[1].pins[0].from_position"


async def test_an_error_midway_of_a_stream_comes_after_what_was_sent() -> None:
    async with running() as loop:
        loop.ledger.error = errors.OutOfRange("the log shrank", "LOG_SHRANK")
        call = loop.stub.ReadEvents(ledger_pb2.ReadEventsRequest(log="control", to_position=3))
        got: list[int] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await drain(call, got)
        assert got == [0, 1, 2]
        status = rich(caught.value)
        assert status.code == grpc.StatusCode.OUT_OF_RANGE.value[0]
        assert detail(status, error_details_pb2.ErrorInfo).reason == "LOG_SHRANK"


async def test_a_caller_that_leaves_a_stream_closes_the_method_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        async with running() as loop:
            call = loop.stub.ReadEvents(ledger_pb2.ReadEventsRequest(log="control"))
            async for answer in call:
                if answer.first_position == 3:
                    break
            call.cancel()
            await asyncio.wait_for(loop.ledger.closed.wait(), WAIT_S)
    assert [record.getMessage() for record in caplog.records] == []


async def test_health_follows_readiness_for_the_server_and_each_service() -> None:
    async with running() as loop:
        stub: Any = health_pb2_grpc.HealthStub(loop.channel)

        async def state(name: str) -> Any:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status

        serving = health_pb2.HealthCheckResponse.SERVING
        for name in ("", SERVICE):
            assert await state(name) == health_pb2.HealthCheckResponse.NOT_SERVING
        await loop.server.set_ready(True)
        for name in ("", SERVICE):
            assert await state(name) == serving
        await loop.server.set_ready(False)
        for name in ("", SERVICE):
            assert await state(name) == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_lists_the_service() -> None:
    async with running() as loop:
        channel: Any = loop.channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([ask]))
        answer = await call.read()
        assert SERVICE in {s.name for s in answer.list_services_response.service}


async def test_stop_lets_a_call_under_way_end() -> None:
    async with running() as loop:
        call = loop.stub.GetCheckpoint(ledger_pb2.GetCheckpointRequest(log="control"))
        answer = asyncio.ensure_future(call)
        await asyncio.wait_for(loop.ledger.entered.wait(), WAIT_S)
        stopping = asyncio.create_task(loop.server.stop(drain_ms=60_000))
        await asyncio.sleep(0)
        loop.ledger.proceed.set()
        assert (await asyncio.wait_for(answer, WAIT_S)).note == b"late"
        await asyncio.wait_for(stopping, WAIT_S)


async def test_an_address_in_use_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = grpcs.Server("test", address)
        with pytest.raises(errors.Unavailable, match="in use"):
            await server.start()


async def test_the_callers_trace_goes_on_in_the_method() -> None:
    telemetry.configure_tracing("test")
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with running() as loop:
        await loop.stub.GetEntry(
            ledger_pb2.GetEntryRequest(log="control"),
            metadata=[("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01")],
        )
        assert loop.ledger.trace_ids[0].split("-")[1] == trace_id


async def test_bytes_that_are_no_message_are_the_callers_error() -> None:
    async with running() as loop:
        unary: Any = loop.channel.unary_unary(f"/{SERVICE}/GetEntry")
        stream: Any = loop.channel.unary_stream(f"/{SERVICE}/ReadEvents")
        for call in (unary(b"\xff\xff"), stream(b"\xff\xff").read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            status = rich(caught.value)
            assert "the request cannot be read" in status.message
            assert detail(status, error_details_pb2.ErrorInfo).reason == "MALFORMED_REQUEST"
        assert loop.ledger.seen == []


@pytest.mark.parametrize(
    ("remaining_s", "worked_s"),
    [(None, 60.0), (1e9, 60.0), (30.0, 29.0), (1.0, 0.8), (0.0, 0.0), (-3.0, 0.0)],
)
def test_a_part_of_the_callers_time_is_kept_for_the_answer(
    remaining_s: float | None, worked_s: float
) -> None:
    assert grpcs.time_to_work_s(remaining_s, 60.0) == pytest.approx(worked_s)


async def test_a_server_that_is_slow_to_greet_is_waited_for() -> None:
    """Paused, or on a busy machine: the kernel took the connection, and nothing comes yet."""
    async with running() as loop:

        async def greet_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(1)
            back, forth = await asyncio.open_connection(*loop.address.split(":"))
            await asyncio.gather(_pass(reader, forth), _pass(back, writer))

        slow = await asyncio.start_server(greet_late, "127.0.0.1", 0)
        host, port = slow.sockets[0].getsockname()
        async with slow, grpcs.channel(f"{host}:{port}") as channel:
            late: Any = ledger_pb2_grpc.LedgerServiceStub(channel)
            request = ledger_pb2.GetEntryRequest(log="control")
            assert (await late.GetEntry(request, timeout=60)).leaf == b"leaf"


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65_536):
        writer.write(piece)
        await writer.drain()
    writer.close()
