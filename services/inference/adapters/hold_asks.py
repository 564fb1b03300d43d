"""Asks about holds on one stream to pricing (AskHolds), for all requests of the process.

An ask is told what the method of its own would tell: the answer, or the same
error. When the stream breaks, asks without an answer go once more, with the
same ids, on a new one, which may end at another server: a hold is found again
by its event. A server without the method is asked by a call for each.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, cast

import grpc
import grpc.aio
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status

from tollbook.pricing.v1 import holds_pb2 as holds
from tollbook.pricing.v1 import pricing_pb2_grpc

log = structlog.get_logger()

MAX_WAITING: Final = 10_000
_MAX_ASKS: Final = 256
_MAX_GIVEN_UP: Final = 1_024
_STREAMS: Final = 2
"""On so many streams, one after the other, an ask is tried."""
_METHODS: Final = {"reserve": "Reserve", "extend": "Extend", "release": "Release"}
_BROKEN: Final = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    }
)
_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


class _NoStreamError(Exception):
    """The server knows no stream of asks."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """An ask without an answer."""

    ask: holds.HoldAsk
    streams: int = 0
    answer: asyncio.Future[Any] = field(default_factory=asyncio.Future)


def _error(code: grpc.StatusCode, said: str, trailing: Any = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=said
    )


def _error_of(packed: bytes) -> grpc.aio.AioRpcError:
    """The error that a call of its own would have raised."""
    status = status_pb2.Status.FromString(packed)
    rich = rpc_status.to_status(status)
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _error(code, status.message, rich.trailing_metadata or ())


class HoldAsks:
    """The stream, opened by the first ask, and again by the first one after its end.

    All of it runs on one event loop.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._pricing: Any = pricing_pb2_grpc.PricingServiceStub(channel)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._to_send: deque[holds.HoldAsk] = deque()
        self._given_up: deque[int] = deque(maxlen=MAX_WAITING)
        self._some = asyncio.Event()
        self._talking: asyncio.Task[None] | None = None
        self._has_streams = True

    async def reserve(
        self, request: holds.ReserveRequest, timeout_ms: int
    ) -> holds.ReserveResponse:
        """As the method Reserve. Errors: grpc.aio.AioRpcError, as of a call."""
        return cast(holds.ReserveResponse, await self._ask("reserve", request, timeout_ms))

    async def extend(self, request: holds.ExtendRequest, timeout_ms: int) -> holds.ExtendResponse:
        """As the method Extend. Errors: grpc.aio.AioRpcError, as of a call."""
        return cast(holds.ExtendResponse, await self._ask("extend", request, timeout_ms))

    async def release(
        self, request: holds.ReleaseRequest, timeout_ms: int
    ) -> holds.ReleaseResponse:
        """As the method Release. Errors: grpc.aio.AioRpcError, as of a call."""
        return cast(holds.ReleaseResponse, await self._ask("release", request, timeout_ms))

    async def close(self) -> None:
        """End the stream; whoever waits is told UNAVAILABLE."""
        if self._talking is not None:
            self._talking.cancel()
            await asyncio.gather(self._talking, return_exceptions=True)
        self._fail(_error(grpc.StatusCode.UNAVAILABLE, "the stream of asks was closed"))

    async def _ask(self, kind: str, request: Any, timeout_ms: int) -> Any:
        if self._has_streams:
            try:
                return await self._on_stream(kind, request, timeout_ms)
            except _NoStreamError:
                pass
        return await getattr(self._pricing, _METHODS[kind])(request, timeout=timeout_ms / 1000)

    async def _on_stream(self, kind: str, request: Any, timeout_ms: int) -> Any:
        if max(len(self._waiting), len(self._to_send)) >= MAX_WAITING:
            raise _error(grpc.StatusCode.UNAVAILABLE, f"{MAX_WAITING} asks wait for pricing")
        number = next(self._numbers)
        parts: dict[str, Any] = {kind: request}
        waiting = _Waiting(holds.HoldAsk(ask_id=number, timeout_ms=timeout_ms, **parts))
        self._waiting[number] = waiting
        self._to_send.append(waiting.ask)
        self._some.set()
        if self._talking is None or self._talking.done():
            self._talking = asyncio.create_task(self._talk(), name="asks about holds")
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await waiting.answer
        except TimeoutError:
            raise _error(
                grpc.StatusCode.DEADLINE_EXCEEDED, "pricing did not answer in time"
            ) from None
        finally:
            if self._waiting.pop(number, None) is not None:
                self._given_up.append(number)
                self._some.set()

    async def _talk(self) -> None:
        """Streams while anybody waits; nobody waits in vain for one that failed."""
        try:
            await self._streams()
        except Exception as error:
            log.error("the stream of asks failed", exc_info=error)
            self._fail(_error(grpc.StatusCode.INTERNAL, f"the stream of asks failed: {error}"))

    async def _streams(self) -> None:
        while self._waiting:
            ended = await self._stream()
            self._given_up.clear()
            self._to_send.clear()
            if ended.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._has_streams = False
                self._fail(_NoStreamError())
                return
            for number, waiting in tuple(self._waiting.items()):
                waiting.streams += 1
                if ended.code() in _BROKEN and waiting.streams < _STREAMS:
                    self._to_send.append(waiting.ask)
                    self._some.set()
                else:
                    self._tell(number, _again(ended))

    async def _stream(self) -> grpc.aio.AioRpcError:
        """Use one stream to its end; gives how it ended."""
        call = self._pricing.AskHolds()
        sending = asyncio.create_task(self._send(call), name="send asks")
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                for answer in response.answers:
                    self._take(answer)
        except grpc.aio.AioRpcError as error:
            return error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The channel was closed.
            return _error(grpc.StatusCode.ABORTED, "the way to pricing was closed")
        finally:
            call.cancel()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return _error(grpc.StatusCode.OK, "the server ended the stream")

    async def _send(self, call: Any) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._to_send or self._given_up:
                request = holds.AskHoldsRequest(
                    asks=self._next_asks(),
                    given_up=[
                        self._given_up.popleft()
                        for _ in range(min(len(self._given_up), _MAX_GIVEN_UP))
                    ],
                )
                try:
                    await call.write(request)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    # The one who reads is told how it ended.
                    return

    def _next_asks(self) -> list[holds.HoldAsk]:
        taken = [self._to_send.popleft() for _ in range(min(len(self._to_send), _MAX_ASKS))]
        return [ask for ask in taken if ask.ask_id in self._waiting]

    def _take(self, answer: holds.HoldAnswer) -> None:
        kind = answer.WhichOneof("answer")
        if kind is None:
            self._tell(answer.ask_id, _error(grpc.StatusCode.INTERNAL, "an answer without content"))
        elif kind == "error":
            self._tell(answer.ask_id, _error_of(answer.error))
        elif (waiting := self._waiting.pop(answer.ask_id, None)) and not waiting.answer.done():
            waiting.answer.set_result(getattr(answer, kind))

    def _tell(self, number: int, error: Exception) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_exception(error)

    def _fail(self, error: Exception) -> None:
        for number in tuple(self._waiting):
            self._tell(number, _again(error))


def _again(error: Exception) -> Exception:
    """The same error for one more who waits: each has a traceback of its own."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return type(error)()
    code = error.code()
    if code in (grpc.StatusCode.OK, grpc.StatusCode.ABORTED):
        code = grpc.StatusCode.UNAVAILABLE
    return _error(code, error.details() or code.name, error.trailing_metadata() or ())
