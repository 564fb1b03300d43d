"""More connections than are served, told in OpenAI's shape and only while it is so; and bodies
that are longer than they may be.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from tests.integration.free_port import free_port

from inference.adapters import http_guard
from inference.adapters.http_guard import body_of, overloaded, pieces_of
from kernel import errors, web


async def test_who_comes_beyond_the_bound_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 3)
    port = free_port()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    stopped, listening = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(
        web.serve(app, f"127.0.0.1:{port}", stopped, overloaded, listening)
    )
    async with asyncio.timeout(60), httpx.AsyncClient(timeout=60) as client:
        await listening.wait()
        idle = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(3)]
        answer = await client.get(f"http://127.0.0.1:{port}/")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "too_many_connections"
        assert answer.headers["x-should-retry"] == "true"
        assert answer.headers["connection"] == "close"
        idle.pop().close()
        while (answer := await client.get(f"http://127.0.0.1:{port}/")).status_code != 204:
            assert answer.status_code == 503
    for writer in idle:
        writer.close()
    stopped.set()
    await serving


def sent(*pieces: bytes) -> Request:
    messages = [
        {"type": "http.request", "body": piece, "more_body": more}
        for more, piece in zip([*[True] * (len(pieces) - 1), False], pieces, strict=True)
    ]

    async def receive() -> Any:
        return messages.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def test_a_body_is_taken_in_up_to_its_bound_and_no_byte_beyond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_guard, "MAX_BODY_BYTES", 5)
    assert await body_of(sent(b"ab", b"", b"cde")) == b"abcde"
    with pytest.raises(errors.InvalidArgument, match="more than 5 bytes") as refused:
        await body_of(sent(b"ab", b"cdef", b"never asked for"))
    assert refused.value.reason == "BODY_TOO_LARGE"
    pieces = pieces_of(sent(b"ab", b"cd", b"ef"), 4, "too long")
    assert [await anext(pieces), await anext(pieces)] == [b"ab", b"cd"]
    with pytest.raises(errors.InvalidArgument, match="too long"):
        await anext(pieces)
