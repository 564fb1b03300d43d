"""What a server's refusal means to the request that met it."""

from __future__ import annotations

import contextlib
from typing import Final

import httpx
import structlog

from kernel import errors

log = structlog.get_logger()

_MAX_ERROR_BYTES: Final = 65_536
_BUSY: Final = frozenset({408, 409, 425, 429, 503})
_KEY_REFUSED: Final = frozenset({401, 403})


async def refusal_of(answer: httpx.Response) -> errors.TollbookError:
    """What a status other than 200 means; nothing was generated."""
    data = bytearray()
    with contextlib.suppress(httpx.HTTPError):
        async for piece in answer.aiter_bytes():
            data += piece
            if len(data) > _MAX_ERROR_BYTES:
                break
    said = " ".join(data[:400].decode("utf-8", "replace").split())
    status = answer.status_code
    if status in _KEY_REFUSED:
        log.error("the engine's server refuses our key: set TOLLBOOK_ENGINE_KEY", said=said)
    if status in _BUSY or status in _KEY_REFUSED or status >= 500:
        return errors.Unavailable(
            f"the engine's server answers {status}", reason="ENGINE_BUSY", retry_after_ms=2_000
        )
    if status == httpx.codes.NOT_FOUND:
        return errors.NotFound("the engine's server has no such model", reason="UNKNOWN_MODEL")
    return errors.InvalidArgument(
        f"the engine refuses the request: {said}", reason="REFUSED_BY_ENGINE"
    )
