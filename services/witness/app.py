"""The witness over HTTP: POST /add-checkpoint, and who it is at /.

Decides nothing; the protocol is protocol.py's, the memory store.py's. The keys
of the logs are read from their file again whenever it changed, so that a rotated
key needs no restart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kernel.cosignature import CosignerKey, cosign
from kernel.note import NoteError, SignerKey, VerifierKey
from kernel.tlogwitness import MAX_REQUEST_BYTES, PATH, SIZE_TYPE
from witness.protocol import (
    BAD_REQUEST,
    CONFLICT,
    RefusedError,
    Seen,
    check,
    open_request,
    parse_request,
)
from witness.store import Store

log = structlog.get_logger()


class KeyFileError(RuntimeError):
    """The file of the logs' keys cannot be used."""


class LogKeys:
    """Verifier keys of the logs that are witnessed, as their file has them now."""

    def __init__(self, path: Path) -> None:
        """Errors: KeyFileError."""
        self._path = path
        self._read_at: tuple[int, int] | None = None
        self._keys: dict[str, list[VerifierKey]] = {}
        self.current()

    def current(self) -> dict[str, list[VerifierKey]]:
        """Origin to keys. Errors: KeyFileError."""
        try:
            stat = self._path.stat()
            version = (stat.st_mtime_ns, stat.st_size)
            if version != self._read_at:
                keys: dict[str, list[VerifierKey]] = {}
                for line in self._path.read_text().splitlines():
                    if line.strip() and not line.startswith("#"):
                        key = VerifierKey.parse(line)
                        keys.setdefault(key.name, []).append(key)
                self._keys, self._read_at = keys, version
        except (OSError, UnicodeDecodeError, NoteError) as error:
            raise KeyFileError(f"the logs' keys {self._path}: {error}") from None
        return self._keys


class Witness:
    """One witness: its key, its memory, and the logs it knows."""

    def __init__(
        self, key: SignerKey, store: Store, keys: LogKeys, now_s: Callable[[], int]
    ) -> None:
        self._key = key
        self._store = store
        self._keys = keys
        self._now_s = now_s

    def add_checkpoint(self, body: bytes) -> bytes:
        """Cosign, or not: the answer's signature line. Errors: RefusedError."""
        request = parse_request(body)
        checkpoint, text = open_request(request, self._keys.current())
        seen = self._store.seen(checkpoint.origin)
        check(request, checkpoint, seen)
        new = Seen(checkpoint.size, checkpoint.root)
        if not self._store.advance(checkpoint.origin, seen, new, request.note):
            last = self._store.seen(checkpoint.origin).size
            raise RefusedError(CONFLICT, f"{last}\n", SIZE_TYPE)
        return cosign(text, self._key, self._now_s())

    def about(self) -> str:
        """Who this is, for a person and for a policy's line."""
        return f"{CosignerKey.of(self._key)}\n"


def app_of(witness: Witness) -> Starlette:
    """The HTTP interface."""

    async def add_checkpoint(http: HttpRequest) -> Response:
        body = b""
        async for part in http.stream():
            body += part
            if len(body) > MAX_REQUEST_BYTES:
                return PlainTextResponse("the request is too large\n", BAD_REQUEST)
        try:
            # Milliseconds, an fsync in them; one after the other is what the memory wants.
            line = witness.add_checkpoint(body)
        except RefusedError as refused:
            log.warning("not cosigned", status=refused.status, why=refused.text.strip())
            headers = {"content-type": refused.content_type}
            return Response(refused.text, refused.status, headers)
        except KeyFileError as error:
            log.error("keys unusable", error=str(error))
            return PlainTextResponse("the witness cannot work now\n", 503)
        return Response(line, media_type="text/plain; charset=utf-8")

    async def about(http: HttpRequest) -> Response:
        del http
        return PlainTextResponse(witness.about())

    return Starlette(
        routes=[
            Route(PATH, add_checkpoint, methods=["POST"]),
            Route("/", about, methods=["GET"]),
        ]
    )
