"""Both clients against a real gRPC server that fails as no healthy service can be made to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.integration.free_port import free_port

from kernel import errors, grpcs
from tollbook import client as tb
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.inference.v1 import inference_pb2_grpc
from tollbook.usage.v1 import usage_pb2

SECRET = "tb-very-secret"
WAIT_S = 60
SUMMARY = inference.UsageSummary(
    request_id="r-1",
    account_id="acme",
    log="usage-3",
    outcome=usage_pb2.OUTCOME_COMPLETE,
    prompt_tokens=7,
    cached_tokens=2,
    output_tokens=4,
    quantities=[
        usage_pb2.Quantity(
            unit=usage_pb2.UNIT_TOKEN,
            direction=usage_pb2.DIRECTION_OUT,
            cache_use=usage_pb2.CACHE_USE_NONE,
            amount=4,
            undelivered_amount=1,
        )
    ],
)
TRAILING = (("tollbook-usage-bin", SUMMARY.SerializeToString()),)
QUICK = tb.Retries(tries=4, first_ms=5, longest_ms=20)

# One try of a script: what the service does with the call.
Act = Callable[[Any], AsyncIterator[Any]]


def started(*, replayed: bool = False) -> inference.GenerateResponse:
    return inference.GenerateResponse(
        started=inference.Started(request_id="r-1", prompt_tokens=7, replayed=replayed)
    )


def delta(text: str, ids: Sequence[int], total: int) -> inference.GenerateResponse:
    return inference.GenerateResponse(
        delta=inference.Delta(text=text, token_ids=ids, cumulative_tokens=total)
    )


ENDING = (
    inference.GenerateResponse(
        finished=inference.Finished(finish_reason=usage_pb2.FINISH_REASON_STOP, output_tokens=4)
    ),
    inference.GenerateResponse(usage=SUMMARY),
)
WHOLE = (started(), delta("ab", [1, 2], 2), delta("cd", [3, 4], 4), *ENDING)
ONCE = inference.GenerateOnceResponse(
    request_id="r-1",
    choices=[
        inference.Choice(
            text="abcd", token_ids=[1, 2, 3, 4], finish_reason=usage_pb2.FINISH_REASON_STOP
        )
    ],
    usage=SUMMARY,
)


def says(*messages: Any) -> Act:
    async def act(context: Any) -> AsyncIterator[Any]:
        for message in messages:
            yield message

    return act


def fails(error: errors.TollbookError, *messages: Any, trailing: grpcs.Trailing = ()) -> Act:
    async def act(context: Any) -> AsyncIterator[Any]:
        for message in messages:
            yield message
        await grpcs.abort(context, error, trailing)

    return act


def ends(code: grpc.StatusCode, *messages: Any) -> Act:
    """With a bare status, as gRPC itself gives it."""

    async def act(context: Any) -> AsyncIterator[Any]:
        for message in messages:
            yield message
        await context.abort(code, "bare")

    return act


class Service(inference_pb2_grpc.InferenceServiceServicer):
    """Plays its script, one act for each call, the last one again and again."""

    def __init__(self, *script: Act) -> None:
        self._script = list(script)
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.left = asyncio.Event()
        self.came = asyncio.Event()

    async def _play(
        self, request: Any, context: Any, say: Callable[[Any], Awaitable[None]]
    ) -> None:
        act = self._script[min(len(self.requests), len(self._script) - 1)]
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.came.set()
        try:
            async for message in act(context):
                await say(message)
        except asyncio.CancelledError:
            self.left.set()
            raise

    # Writes to the context, as the services' own door does: who leaves is then seen here.
    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: Any, context: Any
    ) -> None:
        await self._play(request, context, context.write)

    async def GenerateOnce(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._last(request, context)

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._last(request, context)

    async def _last(self, request: Any, context: Any) -> Any:
        said: list[Any] = []

        async def keep(message: Any) -> None:
            said.append(message)

        await self._play(request, context, keep)
        return said[-1]

    async def CountTokens(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._last(request, context)

    async def Embed(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._last(request, context)

    async def GetConservation(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("no caller's client asks for it")

    @property
    def ids(self) -> list[str]:
        return [request.spec.request_id for request in self.requests]


@asynccontextmanager
async def serving(service: Service, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


Streamed = Callable[..., Awaitable[list[tb.Piece]]]
Whole = Callable[..., Awaitable[tb.Answer]]


async def stream_async(address: str, retries: tb.Retries = QUICK, **options: Any) -> list[tb.Piece]:
    async with tb.AsyncClient(address, SECRET, retries) as client:
        return [piece async for piece in client.generate("hello", model="tiny", **options)]


async def stream_blocking(
    address: str, retries: tb.Retries = QUICK, **options: Any
) -> list[tb.Piece]:
    def run() -> list[tb.Piece]:
        with tb.Client(address, SECRET, retries) as client:
            return list(client.generate("hello", model="tiny", **options))

    return await asyncio.to_thread(run)


async def once_async(address: str, retries: tb.Retries = QUICK, **options: Any) -> tb.Answer:
    async with tb.AsyncClient(address, SECRET, retries) as client:
        return await client.generate_once("hello", model="tiny", **options)


async def once_blocking(address: str, retries: tb.Retries = QUICK, **options: Any) -> tb.Answer:
    def run() -> tb.Answer:
        with tb.Client(address, SECRET, retries) as client:
            return client.generate_once("hello", model="tiny", **options)

    return await asyncio.to_thread(run)


streams = pytest.mark.parametrize("stream", [stream_async, stream_blocking])
onces = pytest.mark.parametrize("once", [once_async, once_blocking])
calls = pytest.mark.parametrize("call", [stream_async, stream_blocking, once_async, once_blocking])

USAGE = tb.Usage(
    "r-1",
    "acme",
    "usage-3",
    "OUTCOME_COMPLETE",
    7,
    2,
    4,
    (tb.Quantity("UNIT_TOKEN", "DIRECTION_OUT", "CACHE_USE_NONE", 4, 1),),
)
PIECES = [
    tb.Started("r-1", 7, False),
    tb.Delta(0, "ab", (1, 2), 2),
    tb.Delta(0, "cd", (3, 4), 4),
    tb.Finished(0, "FINISH_REASON_STOP", 4),
    USAGE,
]


def busy(asked_ms: int = 1) -> errors.Unavailable:
    return errors.Unavailable("full", reason="QUEUE_FULL", retry_after_ms=asked_ms)


# One logical call -----------------------------------------------------------------------


@streams
async def test_a_stream_is_typed_pieces_and_then_its_usage(stream: Streamed) -> None:
    service = Service(says(*WHOLE))
    async with serving(service) as address:
        assert await stream(address, request_id="r-1") == PIECES
    (metadata,) = service.metadata
    assert metadata["authorization"] == f"Bearer {SECRET}"


@onces
async def test_a_whole_answer(once: Whole) -> None:
    async with serving(Service(says(ONCE))) as address:
        answer = await once(address)
    choice = tb.Choice(0, "abcd", (1, 2, 3, 4), "FINISH_REASON_STOP")
    assert answer == tb.Answer("r-1", (choice,), USAGE, False)


@calls
async def test_a_repeat_has_the_id_and_the_body_of_the_first_try(call: Any) -> None:
    good = WHOLE if call in (stream_async, stream_blocking) else (ONCE,)
    service = Service(fails(busy()), ends(grpc.StatusCode.UNAVAILABLE), says(*good))
    async with serving(service) as address:
        await call(address)
        await call(address)
    first, second = service.ids[:3], service.ids[3:]
    assert len(set(first)) == 1
    assert first[0]
    # Another call is another request.
    assert len(second) == 1
    assert second[0] != first[0]
    assert service.requests[0] == service.requests[1] == service.requests[2]


@calls
async def test_tries_are_bounded_in_number(call: Any) -> None:
    service = Service(fails(busy()))
    async with serving(service) as address:
        with pytest.raises(tb.Unavailable) as caught:
            await call(address, request_id="mine")
    assert service.ids == ["mine"] * 4
    assert (caught.value.tries, caught.value.reason) == (4, "QUEUE_FULL")
    assert caught.value.request_id == "mine"
    assert caught.value.usage is None
    assert "same request id" in caught.value.advice


@calls
async def test_tries_are_bounded_in_time(call: Any) -> None:
    """The service asks for a longer pause than there is time: nobody waits for nothing."""
    service = Service(fails(busy(60_001)))
    async with serving(service) as address:
        with pytest.raises(tb.Unavailable):
            await call(address)
    service = Service(fails(busy(30_000)))
    async with serving(service) as address:
        with pytest.raises(tb.Unavailable) as caught:
            await call(address, timeout_s=20)
    assert len(service.ids) == 1
    assert caught.value.failure.retry_after_ms == 30_000


async def test_a_service_that_is_not_there_is_waited_for() -> None:
    """No server at all, then one at the address."""
    service, address = Service(says(ONCE)), f"127.0.0.1:{free_port()}"
    patient = tb.Retries(tries=100, first_ms=50, longest_ms=200)
    waiting = asyncio.create_task(once_async(address, patient))
    with pytest.raises(tb.Unavailable):
        await once_async(address)
    async with serving(service, address):
        assert (await waiting).usage == USAGE


# A stream that breaks -------------------------------------------------------------------


@streams
@pytest.mark.parametrize(
    "cut",
    [says(*WHOLE[:2]), ends(grpc.StatusCode.UNAVAILABLE, *WHOLE[:2])],
    ids=["without its usage", "unavailable"],
)
async def test_a_cut_stream_goes_on_where_it_was_cut(stream: Streamed, cut: Act) -> None:
    replay = (started(replayed=True), delta("abcd", [1, 2, 3, 4], 4), *ENDING)
    service = Service(cut, says(*replay))
    async with serving(service) as address:
        assert await stream(address) == PIECES
    assert len(service.ids) == 2
    assert len(set(service.ids)) == 1


async def test_a_lost_connection_goes_on_at_the_next_server() -> None:
    read = asyncio.Event()

    async def hang(context: Any) -> AsyncIterator[Any]:
        for message in WHOLE[:2]:
            yield message
        await asyncio.Event().wait()

    first, second = Service(hang), Service(says(*WHOLE))
    pieces: list[tb.Piece] = []

    async def consume(address: str) -> None:
        retries = tb.Retries(tries=100, first_ms=50, longest_ms=200)
        async with tb.AsyncClient(address, SECRET, retries) as client:
            async for piece in client.generate("hello", model="tiny"):
                pieces.append(piece)
                if isinstance(piece, tb.Delta):
                    read.set()

    address = f"127.0.0.1:{free_port()}"
    async with serving(first, address):
        consuming = asyncio.create_task(consume(address))
        await asyncio.wait_for(read.wait(), WAIT_S)
    async with serving(second, address):
        await asyncio.wait_for(consuming, WAIT_S)
    assert pieces == PIECES
    assert first.ids == second.ids


@streams
async def test_another_answer_is_never_mixed_with_the_first(stream: Streamed) -> None:
    service = Service(says(*WHOLE[:2]), says(started(), delta("xy", [8, 9], 2), *ENDING))
    async with serving(service) as address:
        with pytest.raises(tb.AnswerChanged) as caught:
            await stream(address)
    assert caught.value.tries == 2


@streams
async def test_a_stream_that_told_its_usage_is_whole_whatever_comes_then(stream: Streamed) -> None:
    service = Service(ends(grpc.StatusCode.UNAVAILABLE, *WHOLE))
    async with serving(service) as address:
        assert await stream(address) == PIECES
    assert len(service.ids) == 1


# Failures -------------------------------------------------------------------------------


@calls
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.Unavailable("stops", reason="DRAINING", retry_after_ms=1), tb.Unavailable),
        (errors.Unavailable("died", reason="ENGINE_LOST", retry_after_ms=1), tb.Unavailable),
        (errors.Internal("failed", reason="ENGINE_FAILED"), tb.ServiceFailed),
    ],
)
async def test_what_is_settled_is_told_with_its_usage_and_not_sent_again(
    call: Any, error: errors.TollbookError, kind: type[tb.CallError]
) -> None:
    service = Service(fails(error, trailing=TRAILING))
    async with serving(service) as address:
        with pytest.raises(kind) as caught:
            await call(address)
    assert len(service.ids) == 1
    assert caught.value.usage == USAGE
    assert caught.value.reason == error.reason
    assert "new request id" in caught.value.advice


@calls
@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (
            errors.InvalidArgument(
                "no", reason="INVALID_FIELD", violations=(errors.FieldViolation("spec", "why"),)
            ),
            tb.InvalidRequest,
            "Change",
        ),
        (errors.Unauthenticated("no", reason="UNKNOWN_KEY"), tb.Unauthenticated, "secret"),
        (errors.NotFound("no", reason="UNKNOWN_MODEL"), tb.UnknownModel, "models()"),
        (errors.AlreadyExists("no", reason="REQUEST_ID_REUSED"), tb.RequestIdReused, "new request"),
        (
            errors.QuotaExceeded(
                "no", reason="NO_CREDIT", violations=(errors.QuotaViolation("spec", "why"),)
            ),
            tb.OverLimit,
            "max_tokens",
        ),
        (errors.DeadlinePassed("no"), tb.DeadlinePassed, "same request id"),
        (errors.Internal("no", reason="DEFECT"), tb.ServiceFailed, "Report"),
        (errors.PermissionDenied("no"), tb.ServiceFailed, "Report"),
    ],
)
async def test_each_error_has_its_type_its_reason_and_what_to_do(
    call: Any, error: errors.TollbookError, kind: type[tb.CallError], advice: str
) -> None:
    service = Service(fails(error))
    async with serving(service) as address:
        with pytest.raises(kind) as caught:
            await call(address, request_id="mine")
    assert type(caught.value) is kind
    assert len(service.ids) == 1
    assert caught.value.reason == error.reason
    assert advice in caught.value.advice
    broken = getattr(error, "violations", ())
    assert caught.value.failure.violations == tuple(tb.Violation("spec", "why") for _ in broken)
    assert str(caught.value).startswith(caught.value.failure.code.name)
    assert "mine" in str(caught.value)


@onces
async def test_details_that_cannot_be_read_are_as_if_not_there(once: Whole) -> None:
    async def act(context: Any) -> AsyncIterator[Any]:
        garbage = (("tollbook-usage-bin", b"\xff"), ("grpc-status-details-bin", b"\xff"))
        await context.abort(grpc.StatusCode.INTERNAL, "bare", garbage)
        yield

    async with serving(Service(act)) as address:
        with pytest.raises(tb.ServiceFailed) as caught:
            await once(address)
    assert (caught.value.usage, caught.value.reason) == (None, "")


@calls
async def test_a_value_that_no_message_holds_is_refused_before_it_is_sent(call: Any) -> None:
    service = Service(says(*WHOLE))
    async with serving(service) as address:
        with pytest.raises(tb.InvalidRequest) as caught:
            await call(address, sampling=tb.Sampling(max_tokens=2**31))
    assert caught.value.reason == "INVALID_FIELD"
    assert service.requests == []


# Deadlines and leaving ------------------------------------------------------------------


async def _hang(context: Any) -> AsyncIterator[Any]:
    for message in WHOLE[:2]:
        yield message
    await asyncio.Event().wait()


async def test_a_deadline_is_the_services_too() -> None:
    async def overdue(call: Any) -> None:
        service = Service(_hang)
        async with serving(service) as address:
            # A busy machine may take longer than a deadline to begin the call.
            for timeout_s in (1.0, 4.0, 16.0, 64.0):
                with pytest.raises(tb.DeadlinePassed) as caught:
                    await call(address, timeout_s=timeout_s, request_id="mine")
                assert caught.value.request_id == "mine"
                if service.came.is_set():
                    break
            await asyncio.wait_for(service.left.wait(), WAIT_S)
        assert len(service.ids) == 1

    # All at once: time has to pass.
    await asyncio.gather(*map(overdue, (stream_async, stream_blocking, once_async, once_blocking)))


@pytest.mark.parametrize("call", [stream_async, once_async])
async def test_cancelling_the_task_cancels_the_call(call: Any) -> None:
    service = Service(_hang)
    async with serving(service) as address:
        task = asyncio.create_task(call(address))
        await asyncio.wait_for(service.came.wait(), WAIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(service.left.wait(), WAIT_S)
    assert len(service.ids) == 1


@calls
async def test_what_a_stopping_server_cancelled_is_sent_again_under_the_same_id(call: Any) -> None:
    good = WHOLE if call in (stream_async, stream_blocking) else (ONCE,)
    service = Service(ends(grpc.StatusCode.CANCELLED, *good[:1]), says(*good))
    async with serving(service) as address:
        await call(address, request_id="mine")
    assert service.ids == ["mine", "mine"]


@calls
async def test_a_service_that_cancels_every_time_is_an_error_and_no_cancelled_task(
    call: Any,
) -> None:
    service = Service(ends(grpc.StatusCode.CANCELLED))
    async with serving(service) as address:
        with pytest.raises(tb.Cancelled) as caught:
            await call(address)
    assert len(service.ids) == QUICK.tries == caught.value.tries
    assert caught.value.reason == ""


@pytest.mark.parametrize("act", [_hang, fails(busy(50_000))], ids=["in the call", "in the pause"])
@pytest.mark.parametrize("method", ["generate", "generate_once"])
async def test_closing_the_client_ends_its_calls_with_an_error(method: str, act: Act) -> None:
    service = Service(act)

    async def run(client: tb.AsyncClient) -> None:
        if method == "generate_once":
            await client.generate_once("hello", model="tiny")
        async for _ in client.generate("hello", model="tiny"):
            pass

    async with serving(service) as address:
        client = tb.AsyncClient(address, SECRET)
        running = asyncio.create_task(run(client))
        await asyncio.wait_for(service.came.wait(), WAIT_S)
        await client.close()
        with pytest.raises(tb.Cancelled):
            await asyncio.wait_for(running, WAIT_S)
        assert not running.cancelled()


@pytest.mark.parametrize("act", [_hang, fails(busy(50_000))], ids=["in the call", "in the pause"])
@pytest.mark.parametrize("method", ["generate", "generate_once"])
async def test_closing_the_blocking_client_ends_its_calls_with_an_error(
    method: str, act: Act
) -> None:
    service = Service(act)
    async with serving(service) as address:
        client = tb.Client(address, SECRET)
        call = getattr(client, method)
        running = asyncio.create_task(asyncio.to_thread(lambda: [*call("hello", model="tiny")]))
        await asyncio.wait_for(service.came.wait(), WAIT_S)
        await asyncio.to_thread(client.close)
        with pytest.raises(tb.Cancelled):
            await asyncio.wait_for(running, WAIT_S)
        with pytest.raises(tb.Cancelled):
            next(client.generate("hello", model="tiny"))
    assert len(service.ids) == 1


async def test_leaving_a_stream_early_tells_the_service() -> None:
    service = Service(_hang)
    async with serving(service) as address, tb.AsyncClient(address, SECRET) as client:
        async with client.generate("hello", model="tiny") as stream:
            assert isinstance(await anext(stream), tb.Started)
        await asyncio.wait_for(service.left.wait(), WAIT_S)
        assert service.ids == [stream.request_id]
        assert stream.usage is None


async def test_leaving_a_blocking_stream_early_tells_the_service() -> None:
    service = Service(_hang)

    def run(address: str) -> None:
        with (
            tb.Client(address, SECRET) as client,
            client.generate("hello", model="tiny") as stream,
        ):
            assert isinstance(next(stream), tb.Started)

    async with serving(service) as address:
        await asyncio.to_thread(run, address)
        await asyncio.wait_for(service.left.wait(), WAIT_S)


@pytest.mark.parametrize("act", [_hang, fails(busy(50_000))], ids=["in the call", "in the pause"])
async def test_a_blocking_stream_is_cancelled_from_another_thread(act: Act) -> None:
    service = Service(act)
    async with serving(service) as address:
        client = tb.Client(address, SECRET)
        stream = client.generate("hello", model="tiny")
        reading = asyncio.create_task(asyncio.to_thread(list, stream))
        await asyncio.wait_for(service.came.wait(), WAIT_S)
        stream.cancel()
        with pytest.raises(tb.Cancelled):
            await asyncio.wait_for(reading, WAIT_S)
        client.close()
    assert len(service.ids) == 1


# The rest -------------------------------------------------------------------------------


async def test_models_are_listed_by_both() -> None:
    listed = inference.ListModelsResponse(
        models=[inference.Model(name="a", base_model="b", adapter="a", context_tokens=9)]
    )
    expected = (tb.Model("a", "b", "a", 9),)

    def run(address: str) -> tuple[tb.Model, ...]:
        with tb.Client(address, SECRET, QUICK) as client:
            return client.models()

    async with serving(Service(fails(busy()), says(listed))) as address:
        async with tb.AsyncClient(address, SECRET, QUICK) as client:
            assert await client.models() == expected
        assert await asyncio.to_thread(run, address) == expected


async def test_tokens_are_counted_by_both() -> None:
    counted = inference.CountTokensResponse(prompt_tokens=7, room_tokens=9)

    def run(address: str) -> int:
        with tb.Client(address, SECRET, QUICK) as client:
            return client.count_tokens("hello", model="tiny")

    service = Service(fails(busy()), says(counted))
    async with serving(service) as address:
        async with tb.AsyncClient(address, SECRET, QUICK) as client:
            assert await client.count_tokens("hello", model="tiny") == 7
        assert await asyncio.to_thread(run, address) == 7
    assert service.requests[-1].spec.chat.messages[0].content == "hello"


@pytest.mark.parametrize("kind", [tb.AsyncClient, tb.Client])
@pytest.mark.parametrize("secret", ["", "tb hidden", "tb-hidden\n", "tb-hiddén"])
async def test_a_secret_that_cannot_be_sent_is_refused_and_not_repeated(
    kind: Any, secret: str
) -> None:
    with pytest.raises(ValueError, match="secret must be") as caught:
        kind("127.0.0.1:1", secret)
    assert "hid" not in str(caught.value)
