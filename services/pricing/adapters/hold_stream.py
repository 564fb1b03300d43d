"""AskHolds: asks of one caller on one stream, each answered as the method of its own would.

A call of its own costs an ask ten times what is done for it here: most of a
server's time went to gRPC. Answers of one commit are ready together and go in
one message; while it is written the next ones gather, and nobody waits on a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import grpc.aio
from google.protobuf.message import Message

from kernel import errors, grpcs
from tollbook.pricing.v1 import holds_pb2

MAX_OPEN: Final = 1_024
MAX_STREAMS: Final = 256
_MAX_ANSWERS: Final = 256
_TIMEOUT_MS: Final = 20_000
_METHOD: Final = "AskHolds"

Method = Callable[[Any, Any], Awaitable[Any]]


class Streams:
    """All streams of a server; `methods` by the names of HoldAsk's `ask`."""

    def __init__(self, methods: dict[str, Method]) -> None:
        self._methods = methods
        self._ended = asyncio.Event()
        self._count = 0

    def end(self) -> None:
        """Read no more asks; each stream ends when what it read is answered."""
        self._ended.set()

    async def serve(self, context: Any) -> None:
        """Serve one to its end. Errors: Unavailable, InvalidArgument."""
        if self._ended.is_set():
            raise errors.Unavailable("this server ends its work", reason="SERVER_ENDS")
        if self._count >= MAX_STREAMS:
            raise errors.Unavailable(
                f"{MAX_STREAMS} streams of asks are open already", reason="TOO_MANY_STREAMS"
            )
        self._count += 1
        try:
            await _Stream(self._methods, context).run(self._ended)
        finally:
            self._count -= 1


class _Stream:
    """One stream: what is open on it, and what is ready to be written."""

    def __init__(self, methods: dict[str, Method], context: Any) -> None:
        self._methods = methods
        self._context = context
        self._open: dict[int, asyncio.Task[holds_pb2.HoldAnswer]] = {}
        self._ready: list[holds_pb2.HoldAnswer] = []
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._is_read = False

    async def run(self, ended: asyncio.Event) -> None:
        """Read and answer until the caller has said all, or `ended`, or the caller is gone."""
        reading = asyncio.create_task(self._read(), name="read asks")
        writing = asyncio.create_task(self._write(), name="write answers")
        ending = asyncio.create_task(ended.wait(), name="server's end")
        try:
            await asyncio.wait((reading, writing, ending), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            # What was not read is asked again elsewhere; what was read is answered.
            reading.cancel()
            self._is_read = True
            self._changed.set()
            await writing
        finally:
            tasks = (reading, writing, ending, *self._open.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        while (request := await self._context.read()) is not grpc.aio.EOF:
            grpcs.readable(request)
            refused = _refused(request)
            for number in request.given_up:
                if (task := self._open.get(number)) is not None:
                    task.cancel()
            for ask in request.asks:
                while len(self._open) >= MAX_OPEN:
                    self._room.clear()
                    await self._room.wait()
                if ask.ask_id in self._open:
                    raise errors.InvalidArgument(
                        f"ask {ask.ask_id} is open already; give each ask a number of its own",
                        reason="ASK_OPEN",
                    )
                task = asyncio.create_task(self._decided(ask, refused.get(ask.ask_id)), name="ask")
                self._open[ask.ask_id] = task
                task.add_done_callback(partial(self._done, ask.ask_id))

    def _done(self, number: int, task: asyncio.Task[holds_pb2.HoldAnswer]) -> None:
        del self._open[number]
        if not task.cancelled():
            self._ready.append(task.result())
        self._room.set()
        self._changed.set()

    async def _decided(
        self, ask: holds_pb2.HoldAsk, refused: errors.TollbookError | None
    ) -> holds_pb2.HoldAnswer:
        kind = str(ask.WhichOneof("ask"))
        limit = asyncio.timeout((ask.timeout_ms or _TIMEOUT_MS) / 1000)
        try:
            if refused is not None:
                raise refused
            async with limit:
                answer = await self._methods[kind](getattr(ask, kind), self._context)
            made: dict[str, Any] = {kind: answer}
            return holds_pb2.HoldAnswer(ask_id=ask.ask_id, **made)
        except errors.TollbookError as error:
            told = error
        except Exception as error:  # what no method foresaw must not leak
            if limit.expired():
                told = errors.DeadlinePassed("the hold was not decided in time")
            else:
                told = grpcs.unforeseen(_METHOD, error)
        return holds_pb2.HoldAnswer(
            ask_id=ask.ask_id, error=grpcs.status_of(told).SerializeToString()
        )

    async def _write(self) -> None:
        while self._open or self._ready or not self._is_read:
            await self._changed.wait()
            self._changed.clear()
            while self._ready:
                answers, self._ready = self._ready[:_MAX_ANSWERS], self._ready[_MAX_ANSWERS:]
                await self._context.write(holds_pb2.AskHoldsResponse(answers=answers))


def _refused(request: holds_pb2.AskHoldsRequest) -> dict[int, errors.InvalidArgument]:
    """Asks that break a rule, by number, each with the error its own method would give.

    Errors: InvalidArgument when no single ask is at fault.
    """
    try:
        grpcs.check(request)
    except errors.InvalidArgument as error:
        found = {ask.ask_id: broken for ask in request.asks if (broken := _broken(ask)) is not None}
        if not found:
            raise error from None
        return found
    return {}


def _broken(ask: holds_pb2.HoldAsk) -> errors.InvalidArgument | None:
    kind = ask.WhichOneof("ask")
    parts: tuple[Message, ...] = (ask,) if kind is None else (getattr(ask, kind), ask)
    for part in parts:
        try:
            grpcs.check(part)
        except errors.InvalidArgument as error:
            return error
    return None
