"""The client on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from kernel import grpcs
from tollbook.client import failures, wire
from tollbook.client.failures import Failure
from tollbook.client.request import authorization, metadata, specified, specified_inputs
from tollbook.client.retries import TIMEOUT_S, LogicalCall, Retries
from tollbook.client.shapes import (
    Answer,
    Embeddings,
    Model,
    Piece,
    Prompt,
    Sampling,
    TokenIds,
    Usage,
)
from tollbook.client.splice import Changed, Splice
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.inference.v1 import inference_pb2_grpc


class AsyncClient:
    """Calls one inference service with one key, over one channel. Use it as `async with`, or
    `close` it. Any number of calls may be under way at once.

    Errors of every call: CallError (failures.py). Cancelling the task cancels the call: what was
    generated until then is charged, and the same request id tells it.
    """

    def __init__(self, address: str, secret: str, retries: Retries | None = None) -> None:
        self._authorized = authorization(secret)
        self._retries = retries or Retries()
        self._channel = grpcs.channel(address)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._closed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the channel, and what is under way on it."""
        self._closed.set()
        await self._channel.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        model: str,
        sampling: Sampling | None = None,
        request_id: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> AsyncGeneration:
        """Stream a generation; it begins when it is iterated. `timeout_s` is for all tries."""
        spec = specified(prompt, model, sampling, request_id)
        call = LogicalCall(spec.request_id, self._retries, timeout_s)
        return AsyncGeneration(spec.request_id, self._pieces(spec, call))

    async def generate_once(
        self,
        prompt: Prompt,
        *,
        model: str,
        sampling: Sampling | None = None,
        request_id: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:
        """The whole generation. `timeout_s` is for all tries."""
        spec = specified(prompt, model, sampling, request_id)
        call = LogicalCall(spec.request_id, self._retries, timeout_s)
        request = inference.GenerateOnceRequest(spec=spec)
        return wire.answer_of(await self._ask(self._stub.GenerateOnce, request, call))

    async def embed(
        self,
        inputs: Sequence[str | TokenIds],
        *,
        model: str,
        dimensions: int | None = None,
        request_id: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Embeddings:
        """Vectors of texts, or of token ids. `timeout_s` is for all tries."""
        request = specified_inputs(inputs, model, dimensions, request_id)
        call = LogicalCall(request.request_id, self._retries, timeout_s)
        return wire.embeddings_of(await self._ask(self._stub.Embed, request, call))

    async def count_tokens(
        self, prompt: Prompt, *, model: str, timeout_s: float = TIMEOUT_S
    ) -> int:
        """Tokens of a prompt, as they would be charged; runs nothing and costs nothing."""
        call = LogicalCall("", self._retries, timeout_s)
        request = inference.CountTokensRequest(spec=specified(prompt, model, None, None))
        return int((await self._ask(self._stub.CountTokens, request, call)).prompt_tokens)

    async def models(self, *, timeout_s: float = TIMEOUT_S) -> tuple[Model, ...]:
        """What is served, in order of name."""
        call = LogicalCall("", self._retries, timeout_s)
        request = inference.ListModelsRequest()
        return wire.models_of(await self._ask(self._stub.ListModels, request, call))

    async def _ask(
        self, method: Callable[..., Awaitable[Any]], request: Any, call: LogicalCall
    ) -> Any:
        while True:
            try:
                return await method(
                    request, metadata=metadata(self._authorized), timeout=call.begin_try()
                )
            except grpc.RpcError as error:
                failure = failures.failure_of(error)
            except asyncio.CancelledError:
                if _is_our_own():
                    raise
                failure = failures.CANCELLED
            await self._pause(call, failure)

    async def _pause(self, call: LogicalCall, failure: Failure) -> None:
        """Wait for the next try. Errors: CallError when there is to be none."""
        pause_s = call.pause_s(failure)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._closed.wait()
            raise failures.error_of(failures.CANCELLED, call.request_id, call.tries)

    async def _pieces(
        self, spec: inference.GenerationSpec, call: LogicalCall
    ) -> AsyncGenerator[Piece, None]:
        request = inference.GenerateRequest(spec=spec)
        splice = Splice()
        while True:
            splice.begin_try()
            usage: Usage | None = None
            rpc: Any = self._stub.Generate(
                request, metadata=metadata(self._authorized), timeout=call.begin_try()
            )
            try:
                # Read to the status, also past the usage: leaving before would look like leaving.
                while (message := await rpc.read()) is not grpc.aio.EOF:
                    piece = wire.piece_of(message)
                    if isinstance(piece, Usage):
                        usage = piece
                    elif piece is not None and (new := splice.take(piece)) is not None:
                        yield new
                failure = failures.CUT
            except Changed:
                failure = failures.CHANGED
            except grpc.RpcError as error:
                failure = failures.failure_of(error)
            except asyncio.CancelledError:
                if _is_our_own():
                    raise
                failure = failures.CANCELLED
            finally:
                rpc.cancel()
            if usage is not None:
                yield usage
                return
            await self._pause(call, failure)


class AsyncGeneration:
    """Pieces of one generation, Usage last of all. What ends without it has raised.

    Leaving early: `aclose` it, or use it as `async with`; the engine is then told to stop.
    `request_id` is known from the beginning; `usage` once the last piece was read.
    """

    def __init__(self, request_id: str, pieces: AsyncGenerator[Piece, None]) -> None:
        self.request_id = request_id
        self.usage: Usage | None = None
        self._pieces = pieces

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        piece = await anext(self._pieces)
        if isinstance(piece, Usage):
            self.usage = piece
        return piece

    async def aclose(self) -> None:
        """Leave: cancels the call where it is still under way."""
        await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def _is_our_own() -> bool:
    """True when this very task was cancelled. gRPC tells a channel that was closed under the call
    with the same exception, and nobody cancelled the task then.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
