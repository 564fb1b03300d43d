"""What a server has, asked at the start: whether it is the model, and how long its context is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import httpx

from kernel import errors

_POLL_S: Final = 0.5
# How long the server is waited for.
_START_S: Final = 60.0


async def context_of(http: httpx.AsyncClient, url: str, name: str, tokenizer: Path) -> int:
    """Tokens of the model's context, by the server and the model's `config.json`: the lesser.

    Errors: Unavailable (no answer in time), FailedPrecondition (not the model, or nobody says).
    """
    models = await _models(http, url)
    model = models.get(name)
    if model is None:
        raise errors.FailedPrecondition(
            f"the server at {url} has no model {name!r}; it has"
            f" {', '.join(sorted(models))[:500]}: set TOLLBOOK_ENGINE_MODEL",
            reason="UNKNOWN_MODEL",
        )
    config = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    known = [model.get("max_model_len"), config.get("max_position_embeddings")]
    sizes = [size for size in known if type(size) is int and size > 0]
    if not sizes:
        raise errors.FailedPrecondition(
            "neither the server nor config.json says how long the model's context is"
            " (max_model_len, max_position_embeddings)",
            reason="UNKNOWN_CONTEXT",
        )
    return min(sizes)


async def _models(http: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """What the server has, by name, once it answers."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _START_S
    while True:
        try:
            answer = await http.get("/v1/models")
            answer.raise_for_status()
            return {item["id"]: item for item in answer.json()["data"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            if loop.time() >= deadline_s:
                raise errors.Unavailable(
                    f"the engine's server at {url} does not answer /v1/models: {error!r}",
                    reason="ENGINE_AWAY",
                ) from error
        await asyncio.sleep(_POLL_S)
