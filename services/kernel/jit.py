"""Compiled loops: kept on disk for the next process, no float, no fast-math.

What is kept is only good for the very sources it came from: numba looks at the
file of a function alone, but limits and layouts of other files are built in as
constants. So the folder it is kept in has the digest of all of them in its name.
Importing this takes the better part of a second; import it where it is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


class Compile(Protocol):
    """Compiles a function when it is first called, and keeps the result."""

    def __call__(self, function: F) -> F:
        """Declare one."""


def _folders(here: Path) -> Iterator[Path]:
    """Where compiled code may be kept, the best place first."""
    if numba.config.CACHE_DIR:
        yield Path(numba.config.CACHE_DIR)
    yield here / "__pycache__"
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    yield Path(cache) / "tollbook"


def _kept_in(here: Path, digest: str) -> Path | None:
    """A folder that can be written, or None: then each process compiles for itself."""
    for folder in _folders(here):
        wanted = folder / f"loops-{digest}"
        try:
            wanted.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(wanted, os.W_OK):
            return wanted
    return None


def compiler(sources: Sequence[Path], salt: bytes = b"") -> Compile:
    """A decorator for functions whose constants and lines come from `sources` alone.

    `salt` stands for what else is built in, such as a contract's descriptor.
    """
    digest = hashlib.sha256(salt)
    for file in sources:
        digest.update(file.read_bytes() + b"\0")
    folder = _kept_in(sources[0].parent, digest.hexdigest()[:16])

    def compiled(function: F) -> F:
        if folder is None:
            return cast(F, numba.njit(boundscheck=False, nogil=True)(function))
        # The folder is read while a function is declared; other users of numba keep theirs.
        theirs, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
        try:
            return cast(F, numba.njit(cache=True, boundscheck=False, nogil=True)(function))
        finally:
            numba.config.CACHE_DIR = theirs

    return compiled


def is_kept(function: Any) -> bool:
    """Whether a compiled function is on disk: one that is not takes seconds when first called."""
    folder = Path(function.stats.cache_path or os.devnull)
    return any(folder.glob(f"*.{function.__name__}-*.nbi"))


def inlined(function: F) -> F:
    """A function that becomes part of the compiled ones that call it."""
    return cast(F, numba.njit(inline="always")(function))
