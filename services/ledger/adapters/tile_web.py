"""The tile store over HTTP, as C2SP tlog-tiles has it: static files, their types and caching.

    GET /logs/LOG/checkpoint
    GET /logs/LOG/tile/LEVEL/INDEX[.p/WIDTH]
    GET /logs/LOG/tile/entries/INDEX[.p/WIDTH]
    GET /logs/LOG/pins
    GET /aside/HEX
    GET /healthz

Reads the store and nothing else, so any web server or content network in front of
the directory or bucket does as well. A path of another form is 404, whatever the
store may hold. A partial tile that is gone because the full one is there is
answered by the full one's first hashes.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kernel import tiles
from kernel.merkle import HASH_BYTES
from ledger.adapters.tile_store import StoreUnusableError, TileStore, headers_of

log = structlog.get_logger()

_LOG: Final = r"(?:control|cuts|usage-(?:0|[1-9][0-9]{0,4}))"
_INDEX: Final = r"(?:x[0-9]{3}/){0,6}[0-9]{3}"
_WIDTH: Final = r"(?:\.p/(?P<width>[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5]))?"
_LEVEL: Final = r"(?:[0-9]|[1-5][0-9]|6[0-3])"
_KNOWN: Final = re.compile(
    rf"logs/{_LOG}/(?:checkpoint|pins|(?P<full>tile/(?P<level>{_LEVEL}|entries)/{_INDEX}){_WIDTH})"
    r"|aside/[0-9a-f]{64}"
)
_ENTRIES: Final = "entries"
_LEAST_TO_COMPRESS_BYTES: Final = 512


def app_of(store: TileStore, problem: Callable[[], str]) -> Starlette:
    """The HTTP interface. `problem` says why publishing does not go on; empty when it does."""

    async def read(path: str) -> bytes | None:
        known = _KNOWN.fullmatch(path)
        if known is None:
            return None
        data = await store.get(path)
        if data is None and known["width"]:
            full = await store.get(path.partition(".p/")[0])
            if full is not None:
                data = _first(full, int(known["width"]), known["level"] == _ENTRIES)
        return data

    async def get(request: Request) -> Response:
        path: str = request.path_params["path"]
        try:
            data = await read(path)
        except StoreUnusableError as error:
            log.error("store unusable", error=str(error))
            return PlainTextResponse("the tile store does not answer\n", 503)
        if data is None:
            return PlainTextResponse("not found\n", 404, {"Cache-Control": "no-store"})
        headers = {**headers_of(path), "Access-Control-Allow-Origin": "*"}
        if f"/{_ENTRIES}/" in path:
            headers["Vary"] = "Accept-Encoding"
            wants = request.headers.get("accept-encoding", "")
            if "gzip" in wants and len(data) >= _LEAST_TO_COMPRESS_BYTES:
                data = gzip.compress(data, 1, mtime=0)
                headers["Content-Encoding"] = "gzip"
        return Response(data, headers=headers)

    async def health(request: Request) -> Response:
        del request
        why = problem()
        return PlainTextResponse(f"{why or 'ok'}\n", 503 if why else 200)

    return Starlette(
        routes=[
            Route("/healthz", health, methods=["GET"]),
            Route("/{path:path}", get, methods=["GET"]),
        ]
    )


def _first(full: bytes, width: int, is_bundle: bool) -> bytes:
    """What a partial tile of this width had, out of the full one."""
    if is_bundle:
        return tiles.encode_bundle(tiles.decode_bundle(full)[:width])
    return full[: width * HASH_BYTES]
