"""The client without an event loop, over gRPC's blocking API: an interrupt ends a call, and no
thread of the client's own runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import grpc

from kernel import grpcs
from tollbook.client import failures, wire
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


class Client:
    """Calls one inference service with one key, over one channel. Use it as `with`, or `close`
    it. Threads may share it.

    Errors of every call: CallError (failures.py).
    """

    def __init__(self, address: str, secret: str, retries: Retries | None = None) -> None:
        self._authorized = authorization(secret)
        self._retries = retries or Retries()
        self._channel = grpcs.blocking_channel(address)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._closed = threading.Event()
        self._streams: WeakSet[Generation] = WeakSet()
        self._entering = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the channel, and what is under way on it."""
        with self._entering:
            self._closed.set()
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        self._channel.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        model: str,
        sampling: Sampling | None = None,
        request_id: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Generation:
        """Stream a generation; it begins when it is iterated. `timeout_s` is for all tries."""
        spec = specified(prompt, model, sampling, request_id)
        call = LogicalCall(spec.request_id, self._retries, timeout_s)
        stream = Generation(self._stub, self._authorized, spec, call)
        with self._entering:
            self._streams.add(stream)
            closed = self._closed.is_set()
        if closed:
            stream.cancel()
        return stream

    def generate_once(
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
        return wire.answer_of(self._ask(self._stub.GenerateOnce, request, call))

    def embed(
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
        return wire.embeddings_of(self._ask(self._stub.Embed, request, call))

    def count_tokens(self, prompt: Prompt, *, model: str, timeout_s: float = TIMEOUT_S) -> int:
        """Tokens of a prompt, as they would be charged; runs nothing and costs nothing."""
        call = LogicalCall("", self._retries, timeout_s)
        request = inference.CountTokensRequest(spec=specified(prompt, model, None, None))
        return int(self._ask(self._stub.CountTokens, request, call).prompt_tokens)

    def models(self, *, timeout_s: float = TIMEOUT_S) -> tuple[Model, ...]:
        """What is served, in order of name."""
        call = LogicalCall("", self._retries, timeout_s)
        return wire.models_of(self._ask(self._stub.ListModels, inference.ListModelsRequest(), call))

    def _ask(self, method: Callable[..., Any], request: Any, call: LogicalCall) -> Any:
        while True:
            try:
                return method(
                    request, metadata=metadata(self._authorized), timeout=call.begin_try()
                )
            except grpc.RpcError as error:
                failure = failures.failure_of(error)
            if self._closed.wait(call.pause_s(failure)):
                raise failures.error_of(failures.CANCELLED, call.request_id, call.tries)


class Generation:
    """Pieces of one generation, Usage last of all. What ends without it has raised.

    Leaving early: `cancel` it, from any thread, or use it as `with`; the engine is then told to
    stop. `request_id` is known from the beginning; `usage` once the last piece was read.
    """

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceServiceStub,
        authorized: tuple[str, str],
        spec: inference.GenerationSpec,
        call: LogicalCall,
    ) -> None:
        self.request_id = spec.request_id
        self.usage: Usage | None = None
        self._stub = stub
        self._authorized = authorized
        self._spec = spec
        self._call = call
        self._cancelled = threading.Event()
        self._rpc: Any = None
        self._pieces = self._read()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        if isinstance(piece, Usage):
            self.usage = piece
        return piece

    def cancel(self) -> None:
        """Leave. Who is reading gets Cancelled."""
        self._cancelled.set()
        rpc = self._rpc
        if rpc is not None:
            rpc.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()
        self._pieces.close()

    def _read(self) -> Generator[Piece, None, None]:
        call = self._call
        request = inference.GenerateRequest(spec=self._spec)
        splice = Splice()
        while True:
            if self._cancelled.is_set():
                raise failures.error_of(failures.CANCELLED, call.request_id, call.tries)
            splice.begin_try()
            usage: Usage | None = None
            rpc: Any = self._stub.Generate(
                request, metadata=metadata(self._authorized), timeout=call.begin_try()
            )
            self._rpc = rpc
            # `cancel` between the check above and that line saw no call to end.
            if self._cancelled.is_set():
                rpc.cancel()
            try:
                # Read to the status, also past the usage: leaving before would look like leaving.
                for message in rpc:
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
            finally:
                rpc.cancel()
            if usage is not None:
                yield usage
                return
            self._cancelled.wait(call.pause_s(failure))
