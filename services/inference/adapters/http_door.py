"""The OpenAI-compatible door over HTTP: who calls, which request, and how it is told.

Goes through the same gate as the gRPC door (app/requests.py): no route that serves anything
is without its key, its hold and its count. Owns the connection: its body's bound, its
stream, and what its end means. Counts nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from inference.adapters import openai_answers
from inference.adapters.http_guard import Guard, body_of, no_route, refusal
from inference.adapters.openai_bodies import Asked, Bodies
from inference.adapters.openai_teller import Teller
from inference.app.embedding import EmbeddingReader
from inference.app.order import Caller
from inference.app.reader import Answer_co, Reader, Whole
from inference.app.requests import Answer, Requests, answer_of, embedded_of, messages_of
from inference.app.shelf import Shelf
from inference.domain.outcome import End
from kernel import errors
from kernel.clock import Clock
from tollbook.inference.v1 import inference_pb2 as inference


class HttpDoor:
    """The ASGI application is `app`; `more` are other routes under the same guard."""

    def __init__(
        self,
        requests: Requests,
        guard: Guard,
        shelf: Shelf,
        bodies: Bodies,
        clock: Clock,
        more: Sequence[Route] = (),
    ) -> None:
        self._requests = requests
        self._shelf = shelf
        self._bodies = bodies
        self._clock = clock
        guarded = guard.guarded
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", guarded(self._chat), methods=["POST"]),
                Route("/v1/completions", guarded(self._completion), methods=["POST"]),
                Route("/v1/embeddings", guarded(self._embeddings), methods=["POST"]),
                Route("/v1/models", guarded(self._models), methods=["GET"]),
                Route("/v1/models/{name}", guarded(self._model), methods=["GET"]),
                *more,
            ],
            exception_handlers={404: no_route, 405: no_route},
        )

    async def _models(self, _request: Request, caller: Caller) -> Response:
        visible = self._shelf.visible(caller.account_id, caller.project_id)
        data = [_model_of(name) for name in visible]
        return JSONResponse({"object": "list", "data": data})

    async def _model(self, request: Request, caller: Caller) -> Response:
        name = request.path_params["name"]
        self._shelf.find(name, caller.account_id, caller.project_id)
        return JSONResponse(_model_of(name))

    async def _chat(self, request: Request, caller: Caller) -> Response:
        asked = await self._bodies.chat(await body_of(request), _request_id(request))
        return await self._generate(request, caller, asked)

    async def _completion(self, request: Request, caller: Caller) -> Response:
        asked = await self._bodies.completion(await body_of(request), _request_id(request))
        return await self._generate(request, caller, asked)

    async def _embeddings(self, request: Request, caller: Caller) -> Response:
        base64, asked = Bodies.embedding(await body_of(request), _request_id(request))
        found = self._requests.embed(caller, asked)
        if isinstance(found, EmbeddingReader):
            answer = await _unless_left(found, request.receive)
            if isinstance(answer, Response):
                return answer
        else:
            answer, failure = embedded_of(found)
            if failure is not None:
                return refusal(failure, answer.usage)
        return JSONResponse(
            openai_answers.embeddings_of(answer, asked.model, base64),
            headers={"x-request-id": answer.request_id},
        )

    async def _generate(self, request: Request, caller: Caller, asked: Asked) -> Response:
        body, spec, bound = asked.body, asked.spec, asked.bound
        created_s = self._clock.now_us() // 1_000_000
        teller = Teller(bound is not None, spec.model, created_s, bound)
        found = self._requests.find(caller, spec)
        if body.stream:
            include = body.stream_options is not None and body.stream_options.include_usage
            return await _stream_of(found, teller, include)
        if isinstance(found, Reader):
            return await _whole(found, teller, request.receive)
        answer = answer_of(found)
        if answer.failure is not None:
            return refusal(answer.failure, answer.summary)
        return _told(teller, answer.request_id, answer.choices, answer.summary)


async def _whole(reader: Reader, teller: Teller, receive: Receive) -> Response:
    """The whole answer, unless the caller goes first."""
    answer = await _unless_left(reader, receive)
    if isinstance(answer, Response):
        return answer
    return _told(teller, answer.request_id, answer.choices, answer.usage)


async def _unless_left(reader: Whole[Answer_co], receive: Receive) -> Answer_co | Response:
    answering = asyncio.create_task(reader.whole())
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            # Nobody is there to read it.
            return Response(status_code=499)
        return answering.result()
    except errors.TollbookError as error:
        return refusal(error, reader.summary)
    finally:
        # Before anything is awaited: from here on nothing is handed over.
        answering.cancel()
        leaving.cancel()
        reader.leave(End.CALLER_LEFT)
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _stream_of(found: Any, teller: Teller, include_usage: bool) -> Response:
    """A stream whose head is sent only when it is admitted: a refusal has its own status."""
    if not isinstance(found, Reader):
        answer: Answer = answer_of(found)
        if answer.failure is not None:
            return refusal(answer.failure, answer.summary)

        async def replay() -> AsyncIterator[inference.GenerateResponse]:
            for message in messages_of(answer):
                yield message

        return _EventStream(replay(), None, teller, include_usage)
    messages = found.stream()
    try:
        first = await anext(messages)
    except errors.TollbookError as error:
        found.leave(End.CALLER_LEFT)
        return refusal(error, found.summary)
    except BaseException:
        found.leave(End.CALLER_LEFT)
        raise
    teller.chunk(first)
    return _EventStream(messages, found, teller, include_usage)


class _EventStream(Response):
    """Server-sent events. A chunk counts as handed over when the server took it and asks
    for more; a caller that reads slowly holds the server, and with it this stream.
    """

    def __init__(
        self,
        messages: AsyncIterator[inference.GenerateResponse],
        reader: Reader | None,
        teller: Teller,
        include_usage: bool,
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-request-id": teller.request_id},
            media_type="text/event-stream",
        )
        del self.headers["content-length"]
        self._messages: Any = messages
        self._reader = reader
        self._teller = teller
        self._include_usage = include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            if self._reader is not None:
                self._reader.leave(End.CALLER_LEFT)
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with aclosing(self._messages) as messages:
                async for message in messages:
                    chunk = self._teller.chunk(message)
                    if chunk is None or (message.HasField("usage") and not self._include_usage):
                        continue
                    await send(_event(json.dumps(chunk)))
            await send(_event("[DONE]"))
        except errors.TollbookError as error:
            summary = self._reader.summary if self._reader is not None else None
            await send(_event(json.dumps(openai_answers.error_of(error, summary)[1])))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(data: str) -> dict[str, Any]:
    body = f"data: {data}\n\n".encode()
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _disconnected(receive: Receive) -> None:
    """Return when the caller is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _told(
    teller: Teller,
    request_id: str,
    choices: Any,
    summary: inference.UsageSummary,
) -> Response:
    teller.request_id = request_id
    return JSONResponse(teller.whole(choices, summary), headers={"x-request-id": request_id})


def _model_of(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tollbook"}


def _request_id(request: Request) -> str:
    return request.headers.get("idempotency-key", "")
