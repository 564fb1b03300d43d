"""What every route of the HTTP door has: its key, its span, its errors and its body's bound."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final

import structlog
from opentelemetry import trace
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from inference.adapters import openai_answers
from inference.adapters.keys import Keys
from inference.app.order import Caller
from kernel import errors, grpcs, telemetry, web
from tollbook.inference.v1 import inference_pb2 as inference

log = structlog.get_logger()

MAX_BODY_BYTES: Final = grpcs.MAX_MESSAGE_BYTES
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
Handler = Callable[[Request, Caller], Coroutine[Any, Any, Response]]


class Guard:
    """Goes before every handler."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._tracer = telemetry.tracer("inference")

    def guarded(self, handler: Handler) -> Endpoint:
        """Key first, then the handler; every error leaves in OpenAI's shape."""

        async def endpoint(request: Request) -> Response:
            headers = dict(request.headers)
            with self._tracer.start_as_current_span(
                f"{request.method} {request.scope['route'].path}",
                context=telemetry.context_from(headers),
                kind=trace.SpanKind.SERVER,
            ):
                try:
                    caller = await self._keys.resolve(headers.get("authorization"))
                    return await handler(request, caller)
                except errors.TollbookError as error:
                    return refusal(error, None)
                except Exception:
                    log.exception("a route failed unexpectedly", path=request.url.path)
                    return refusal(
                        errors.Internal(
                            "an unexpected failure; it is in the service's log, please report it",
                            reason="DEFECT",
                        ),
                        None,
                    )

        return endpoint


def refusal(error: errors.TollbookError, summary: inference.UsageSummary | None) -> Response:
    """An error, with the usage where the request is settled."""
    status, body, headers = openai_answers.error_of(error, summary)
    return JSONResponse(body, status, dict(headers))


async def overloaded(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer while there are more connections than are served."""
    error = errors.Unavailable(
        f"{web.MAX_CONNECTIONS} connections are open; close some, or ask again",
        reason="TOO_MANY_CONNECTIONS",
    )
    response = refusal(error, None)
    response.headers["connection"] = "close"
    await response(scope, receive, send)


async def no_route(request: Request, _error: Exception) -> Response:
    """What there is not, in OpenAI's shape too."""
    said = f"there is no {request.method} {request.url.path}"
    return refusal(errors.NotFound(said, reason="NO_ROUTE"), None)


async def pieces_of(request: Request, most_bytes: int, problem: str) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Errors: InvalidArgument with `problem`, once it has more bytes."""
    taken = 0
    async for piece in request.stream():
        taken += len(piece)
        if taken > most_bytes:
            raise errors.InvalidArgument(problem, reason="BODY_TOO_LARGE")
        yield piece


async def body_of(request: Request) -> bytes:
    """The body, within its bound. Errors: InvalidArgument."""
    problem = f"the body has more than {MAX_BODY_BYTES} bytes"
    data = bytearray()
    async for piece in pieces_of(request, MAX_BODY_BYTES, problem):
        data += piece
    return bytes(data)
