"""The directory that an export is written into: all of it appears at once, or nothing does.

Owns the folder and its files; what stands in them comes from elsewhere. The
layout is the auditor's (audit/layout.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audit.layout import ASIDE_DIR, KEYS_FILE, LOGS_DIR, README_FILE, SERVED_FILE
from kernel.errors import FailedPrecondition
from kernel.tilebuilder import TileFile

README = """\
An export of a Tollbook system: every log, and the balances that were served.

To audit it, with verifier keys that you have from somewhere else than here:

    tollbook audit THIS_DIRECTORY --key FILE      (or: python -m audit ...)

It recomputes every tree, every charge and every balance, and ends with 0 only
if all agree with what was signed and served. Each directory below logs/ is a
C2SP tlog-tiles log that other tools check too. aside/ has the records too
large for a tile's entry, named by their SHA-256; served.json has the answer of
PricingService.ListBalances; keys has the verifier keys for convenience and is
never trusted. docs/auditors.md tells every format byte by byte.
"""


class ExportFolder:
    """An export being written."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: set[Path] = set()
        self.bytes_written = 0

    def put(self, path: str, data: bytes) -> None:
        """Write one file, its path given below the export."""
        target = self._root / path
        if target.parent not in self._made:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(target.parent)
        target.write_bytes(data)
        self.bytes_written += len(data)

    def put_log(self, log: str, file: TileFile) -> None:
        """Write one file of a log."""
        self.put(f"{LOGS_DIR}/{log}/{file.path}", file.data)

    def put_aside(self, digest: bytes, record: bytes) -> None:
        """Write a record that stands aside."""
        self.put(f"{ASIDE_DIR}/{digest.hex()}", record)

    def put_served(self, text: str) -> None:
        """Write what was served."""
        self.put(SERVED_FILE, text.encode())

    def put_keys(self, text: str) -> None:
        """Write the verifier keys."""
        self.put(KEYS_FILE, text.encode())


def is_export(path: Path) -> bool:
    """Tell whether a directory is an export of ours, and nothing else."""
    known = {LOGS_DIR, ASIDE_DIR, SERVED_FILE, KEYS_FILE, README_FILE}
    names = {entry.name for entry in path.iterdir()}
    return {LOGS_DIR, README_FILE} <= names <= known


@contextmanager
def new_export(path: Path, replace: bool) -> Iterator[ExportFolder]:
    """Give a folder to write into; it becomes `path` when the block ends without an error.

    Errors: FailedPrecondition when something stands at `path` already, unless
    it is an older export and `replace` is set.
    """
    path = path.absolute()
    if path.exists():
        occupied = not path.is_dir() or any(path.iterdir())
        if occupied and not (replace and path.is_dir() and is_export(path)):
            hint = "; it is an export: --replace puts the new one in its place"
            raise FailedPrecondition(
                f"{path} is not empty: choose another directory"
                + (hint if path.is_dir() and is_export(path) else ""),
                reason="DIRECTORY_NOT_EMPTY",
            )
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        folder = ExportFolder(part)
        folder.put(README_FILE, README.encode())
        yield folder
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot write the export to {path}: {error.strerror or error}",
            reason="DIRECTORY_UNUSABLE",
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
