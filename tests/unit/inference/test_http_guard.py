"""More connections than are served: an answer in OpenAI's shape, and only while it is so."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from inference.adapters.http_guard import overloaded
from kernel import web


async def test_who_comes_beyond_the_bound_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 3)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    stopped = asyncio.Event()
    serving = asyncio.create_task(web.serve(app, f"127.0.0.1:{port}", stopped, overloaded))
    idle: list[asyncio.StreamWriter] = []
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        while len(idle) < 3:
            try:
                idle.append((await asyncio.open_connection("127.0.0.1", port))[1])
            except OSError:
                await asyncio.sleep(0.01)
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
