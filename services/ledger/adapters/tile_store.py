"""Where published tiles are kept: a directory, or a bucket of an S3-compatible store.

Each log is a C2SP tlog-tiles directory `logs/LOG/`; records too large for an
entry are `aside/HEX`, by their SHA-256. The same layout as an export's, so that
an auditor's tools read both. Beside a usage log's tiles lie its `pins`, a line
`FROM_POSITION CONTROL_SIZE` each: they are no part of the log, and only signed
by the cuts, but a ledger that is rebuilt from the tiles wants them.

Objects are written whole or not at all (a rename, or one PUT); all but the
checkpoints are immutable. Credentials and endpoint of an S3 store come from
the usual AWS_* variables.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import from_url

from kernel.tilebuilder import CHECKPOINT_PATH

LOGS_DIR: Final = "logs"
ASIDE_DIR: Final = "aside"
PINS_PATH: Final = "pins"
IMMUTABLE: Final = "public, max-age=31536000, immutable"
FRESH: Final = "no-cache"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
BYTES_TYPE: Final = "application/octet-stream"

# S3's code for it (Amazon S3 API reference, "List of error codes"). Both this and an object that is
# missing are a 404, and a client has no other way to tell them apart without one more request.
_NO_BUCKET: Final = "<Code>NoSuchBucket</Code>"


class StoreUnusableError(RuntimeError):
    """The store cannot be opened, read or written; says which and why."""


def log_prefix(log: str) -> str:
    """Where a log's files are in the store."""
    return f"{LOGS_DIR}/{log}/"


def aside_path(digest: bytes) -> str:
    """Where a record that stands aside is in the store."""
    return f"{ASIDE_DIR}/{digest.hex()}"


def headers_of(path: str) -> dict[str, str]:
    """Content type and caching of an object, by C2SP tlog-tiles."""
    if path.endswith((f"/{CHECKPOINT_PATH}", f"/{PINS_PATH}")):
        return {"Content-Type": TEXT_TYPE, "Cache-Control": FRESH}
    return {"Content-Type": BYTES_TYPE, "Cache-Control": IMMUTABLE}


def format_pins(pins: Iterable[tuple[int, int]]) -> bytes:
    """The text of a log's pins."""
    return "".join(f"{position} {control_size}\n" for position, control_size in pins).encode()


def parse_pins(data: bytes) -> list[tuple[int, int]]:
    """Read pins back. Errors: ValueError."""
    pins: list[tuple[int, int]] = []
    for line in data.decode("ascii", "replace").splitlines():
        position, _, control_size = line.partition(" ")
        pins.append((int(position), int(control_size)))
    return pins


class TileStore:
    """One place for the published files of all logs."""

    def __init__(self, url: str) -> None:
        """`url`: file:///ABSOLUTE/DIRECTORY, or s3://BUCKET/PREFIX. Errors: StoreUnusableError."""
        self.url = url
        scheme = urlsplit(url).scheme
        if scheme not in ("file", "s3"):
            raise StoreUnusableError(
                f"tiles are kept at file:///DIRECTORY or s3://BUCKET/PREFIX, not at {url!r}"
            )
        # A directory has nowhere to keep an object's headers; who serves it gives them.
        self._keeps_headers = scheme != "file"
        try:
            if scheme == "file":
                Path(urlsplit(url).path).mkdir(parents=True, exist_ok=True)
            self._store: Any = from_url(url)
        except (BaseError, ValueError, OSError) as error:
            raise StoreUnusableError(f"{url} cannot be opened: {error}") from None

    async def get(self, path: str) -> bytes | None:
        """An object's bytes; None when there is none. Errors: StoreUnusableError."""
        try:
            found = await obstore.get_async(self._store, path)
            return bytes(await found.bytes_async())
        except (NotFoundError, FileNotFoundError) as error:
            if _NO_BUCKET in str(error):
                # Not an empty one: a log that was published would be taken for one that never was.
                raise self._unusable("read", error) from None
            return None
        except (BaseError, OSError) as error:
            raise self._unusable("read", error) from None

    async def put(self, path: str, data: bytes) -> None:
        """Write an object whole. Errors: StoreUnusableError."""
        attributes: Any = headers_of(path) if self._keeps_headers else None
        try:
            await obstore.put_async(self._store, path, data, attributes=attributes)
        except (BaseError, OSError) as error:
            raise self._unusable("written", error) from None

    async def names(self, prefix: str) -> list[str]:
        """Paths of all objects below a prefix. Errors: StoreUnusableError."""
        try:
            return [
                item["path"]
                async for batch in obstore.list(self._store, prefix=prefix)
                for item in batch
            ]
        except (BaseError, OSError) as error:
            raise self._unusable("listed", error) from None

    async def delete(self, paths: Iterable[str]) -> None:
        """Remove objects. Errors: StoreUnusableError."""
        wanted = list(paths)
        if not wanted:
            return
        try:
            await obstore.delete_async(self._store, wanted)
        except (NotFoundError, FileNotFoundError) as error:
            if _NO_BUCKET in str(error):
                raise self._unusable("cleared", error) from None
        except (BaseError, OSError) as error:
            raise self._unusable("cleared", error) from None

    def _unusable(self, done: str, error: Exception) -> StoreUnusableError:
        if _NO_BUCKET in str(error):
            return StoreUnusableError(
                f"{self.url} cannot be {done}: there is no bucket {urlsplit(self.url).netloc!r};"
                " correct its name, or make it"
            )
        return StoreUnusableError(f"{self.url} cannot be {done}: {error}")
