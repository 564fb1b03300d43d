"""How the loops are compiled: once, kept on disk for the next process, no float, no fast-math.

What is kept is only good for the very sources it came from: numba looks at the file of a function
alone, but limits, layouts and enumerations of other files are built in as constants. So the folder
it is kept in has the digest of all of them in its name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np

import kernel
from tollbook.usage.v1 import usage_pb2

F = TypeVar("F", bound=Callable[..., Any])

_HERE: Final = Path(__file__).parent
_SOURCES: Final = (_HERE, _HERE.parent, *(Path(folder) for folder in kernel.__path__))


def _sources() -> str:
    """Digest of everything that a compiled loop may have a constant or a line of."""
    digest = hashlib.sha256(usage_pb2.DESCRIPTOR.serialized_pb)
    for folder in _SOURCES:
        for file in sorted(folder.glob("*.py")):
            digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _folders() -> Iterator[Path]:
    """Where compiled code may be kept, the best place first."""
    if numba.config.CACHE_DIR:
        yield Path(numba.config.CACHE_DIR)
    yield _HERE / "__pycache__"
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    yield Path(cache) / "tollbook"


def _kept_in() -> Path | None:
    """A folder that can be written, or None: then each process compiles for itself."""
    for folder in _folders():
        wanted = folder / f"loops-{_sources()}"
        try:
            wanted.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(wanted, os.W_OK):
            return wanted
    return None


_KEPT_IN: Final = _kept_in()


def compiled(function: F) -> F:
    """Compile a function when it is first called, and keep the result for the next process."""
    if _KEPT_IN is None:
        return cast(F, numba.njit(boundscheck=False, nogil=True)(function))
    # The folder is read while a function is declared; other users of numba keep theirs.
    theirs, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(_KEPT_IN)
    try:
        return cast(F, numba.njit(cache=True, boundscheck=False, nogil=True)(function))
    finally:
        numba.config.CACHE_DIR = theirs


def inlined(function: F) -> F:
    """A function that becomes part of the compiled ones that call it."""
    return cast(F, numba.njit(inline="always")(function))


@inlined
def copy(out: Any, at: int, data: Any, start: int, length: int) -> int:
    """Copy bytes; gives the place after them."""
    # Unsigned, so that no index is tested for being negative: the loop becomes vector moves.
    to, source = np.uint64(at), np.uint64(start)
    for byte in range(np.uint64(length)):
        out[to + byte] = data[source + byte]
    return at + length
