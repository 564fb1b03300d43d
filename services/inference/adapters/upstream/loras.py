"""Adapters that a server of vLLM's kind was given at run time, and is given again when it forgot.

The server is not ours: it may be started again behind our back, and has then what it is started
with. What we gave it is kept here, with the path as the server sees it.
"""

from __future__ import annotations

import asyncio

import httpx
import structlog

from kernel import errors

log = structlog.get_logger()


class Loras:
    """Everything runs on one event loop."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._healing = asyncio.Lock()

    async def add(self, http: httpx.AsyncClient, name: str, path: str) -> None:
        """Have it loaded. Errors: InvalidArgument, Unavailable."""
        answer = await _post(http, "load", {"lora_name": name, "lora_path": path})
        if answer.status_code != httpx.codes.OK:
            raise errors.InvalidArgument(
                f"the server does not load adapter {name!r}: {answer.status_code}"
                f" {answer.text[:300]}",
                reason="BAD_ADAPTER",
            )
        self._paths[name] = path

    async def remove(self, http: httpx.AsyncClient, name: str) -> None:
        """Have it unloaded. Errors: NotFound, of one that was never given to it; Unavailable."""
        answer = await _post(http, "unload", {"lora_name": name})
        given = self._paths.pop(name, None)
        if answer.status_code == httpx.codes.OK:
            return
        if given is None:
            raise errors.NotFound(f"adapter {name!r} is not loaded", reason="UNKNOWN_MODEL")
        log.warning("the server had forgotten an adapter", adapter=name)

    async def again(
        self, http: httpx.AsyncClient, name: str, refusal: errors.TollbookError
    ) -> None:
        """It is said to be unknown: have it loaded again, once for all who ask.

        Errors: the refusal, of one that was never given to the server; Unavailable.
        """
        path = self._paths.get(name)
        if path is None:
            raise refusal
        async with self._healing:
            answer = await _post(http, "load", {"lora_name": name, "lora_path": path})
        # Who waited for the lock finds it there.
        if answer.status_code == httpx.codes.OK:
            log.warning("the server had forgotten an adapter; it has it again", adapter=name)
        elif "already" not in answer.text[:1_000]:
            log.error(
                "the server forgot an adapter and does not load it",
                adapter=name,
                said=answer.text[:300],
            )
            raise errors.Unavailable(
                f"the engine's server lost adapter {name!r} and does not load it again",
                reason="ENGINE_BUSY",
                retry_after_ms=2_000,
            )


async def _post(http: httpx.AsyncClient, verb: str, body: dict[str, str]) -> httpx.Response:
    try:
        return await http.post(f"/v1/{verb}_lora_adapter", json=body)
    except httpx.HTTPError as error:
        raise errors.Unavailable(
            f"the engine does not answer: {error!r}", reason="ENGINE_AWAY"
        ) from error
