"""Stands before a real OpenAI server and spoils its answers, one way at a time.

For what no honest server can be made to do; with no lie set, every byte passes as it came.
"""

from __future__ import annotations

import asyncio
import json
from array import array
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.integration.free_port import free_port

from kernel import web

# Fields that OpenAI's own API has not, and a server like it refuses.
_EXTRAS = ("return_token_ids", "cache_salt", "ignore_eos", "top_k")


class LyingServer:
    """`lie` is what the next answers are spoiled by; empty: nothing."""

    def __init__(self, real: str) -> None:
        self._client = httpx.AsyncClient(base_url=real, timeout=60, trust_env=False)
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        self.lie = ""
        self.asked = 0
        # Tokens, or inputs, that were passed on: how many stand in a chunk is the real server's
        # affair.
        self.given = 0
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            ]
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def _models(self, _request: Request) -> Response:
        answer = await self._client.get("/v1/models")
        return Response(answer.content, answer.status_code, media_type="application/json")

    async def _completions(self, request: Request) -> Response:
        self.asked += 1
        body = await request.json()
        lie = self.lie
        if lie == "busy":
            return JSONResponse({"error": "too many"}, 503)
        if lie == "strict" and any(name in body for name in _EXTRAS):
            return JSONResponse({"error": {"message": "unknown field"}}, 400)
        if lie == "padded":
            # Half the work, for all of the pay.
            body["max_tokens"] //= 2
        asking = self._client.build_request("POST", "/v1/completions", json=body)
        answer = await self._client.send(asking, stream=True)
        if answer.status_code != 200:
            await answer.aread()
            return Response(answer.content, answer.status_code, media_type="application/json")
        return StreamingResponse(self._spoiled(answer, lie), media_type="text/event-stream")

    async def _embeddings(self, request: Request) -> Response:
        self.asked += 1
        lie = self.lie
        if lie == "busy":
            return JSONResponse({"error": "too many"}, 503)
        body = await request.json()
        if lie == "stuck" and self.given:
            # For as long as anybody waits for it.
            while not await request.is_disconnected():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            return Response(status_code=499)
        answer = await self._client.post("/v1/embeddings", json=body)
        if answer.status_code != 200:
            return Response(answer.content, answer.status_code, media_type="application/json")
        told = answer.json()
        self.given += len(told["data"])
        spoil_vectors(told, lie)
        data = json.dumps(told).encode()
        return Response(data[: len(data) // 2] if lie == "garbage" else data)

    async def _spoiled(self, answer: httpx.Response, lie: str) -> AsyncIterator[bytes]:
        """The real stream, but for one lie."""
        try:
            seen = given = 0
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                if line == "data: [DONE]":
                    if lie != "no_done":
                        yield b"data: [DONE]\n\n"
                    return
                chunk = json.loads(line[5:])
                seen += bool(chunk["choices"])
                if lie == "cut" and seen == 2:
                    return
                if lie == "error" and seen == 2:
                    yield b'data: {"error": {"message": "out of memory"}}\n\n'
                    return
                if lie == "garbage" and seen == 2:
                    yield b"data: <html>\n\n"
                    return
                if lie == "silence" and seen == 2:
                    await asyncio.Event().wait()
                spoil(chunk, lie)
                tokens = sum(len(choice.get("token_ids") or ()) for choice in chunk["choices"])
                given += tokens
                self.given += tokens
                if lie == "padded" and chunk.get("usage"):
                    # It claims what it padded: only the text tells.
                    chunk["usage"]["completion_tokens"] = given
                if chunk.get("usage") is not None or chunk["choices"]:
                    yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
        finally:
            await answer.aclose()


def spoil(chunk: dict[str, Any], lie: str) -> None:
    """Change a chunk as the lie has it."""
    usage = chunk.get("usage")
    if lie in ("no_usage", "text_no_usage"):
        chunk.pop("usage", None)
    elif usage and lie == "more":
        usage["completion_tokens"] += 7
    elif usage and lie == "fewer":
        usage["completion_tokens"] = max(0, usage["completion_tokens"] - 3)
    elif usage and lie == "prompt":
        usage["prompt_tokens"] += 5
    elif usage and lie == "cached":
        usage["prompt_tokens_details"] = {"cached_tokens": usage["prompt_tokens"] + 2}
    if chunk["choices"]:
        choice = chunk["choices"][0]
        if lie == "text" and choice["text"]:
            choice["text"] = "nothing of the sort "
        elif lie == "padded":
            choice["token_ids"] = 2 * choice["token_ids"]
        if lie.startswith("text_") or lie == "strict":
            choice.pop("token_ids", None)
            choice.pop("prompt_token_ids", None)


def spoil_vectors(told: dict[str, Any], lie: str) -> None:
    """Change an answer of vectors as the lie has it."""
    if lie == "no_usage":
        del told["usage"]
    elif lie == "more":
        told["usage"]["prompt_tokens"] += 7
    elif lie == "fewer":
        told["usage"]["prompt_tokens"] -= 3
    elif lie == "missing":
        told["data"].pop()
    elif lie == "floats":
        for item in told["data"]:
            item["embedding"] = list(array("f", b64decode(item["embedding"])))
    elif lie == "nan":
        told["data"][0]["embedding"] = [float("nan")] * 128


@asynccontextmanager
async def lying_server(real: str) -> AsyncIterator[LyingServer]:
    """One that listens; ended with the block."""
    server = LyingServer(real)
    stopped, listening = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(
        web.serve(server.app, server.address, stopped, listening=listening)
    )
    try:
        async with asyncio.timeout(60):
            await listening.wait()
        yield server
    finally:
        stopped.set()
        await running
        await server.close()
