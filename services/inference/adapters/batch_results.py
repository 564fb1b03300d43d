"""A batch's results under way: answers and errors, each line durable before it counts.

Owns two files that only grow. A line's end is the last byte that is written of it, so after a
crash whatever has no end is cut off, and its request is taken up again.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from inference.domain.batches import Sums


class Results:
    """Open both files, cutting off what a crash left half. Blocks; call it in a thread."""

    def __init__(self, answers: Path, failures: Path) -> None:
        self.sums = Sums()
        self.done: set[str] = set()
        """The custom ids that have a result."""
        self._files = tuple(_open(path) for path in (answers, failures))
        for file, answered in zip(self._files, (True, False), strict=True):
            for line in _whole_lines(file):
                self.done.add(line["custom_id"])
                self.sums.add(answered, line)
        self._waiting: list[tuple[bool, dict[str, Any], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of the answers and of the failures."""
        answers, failures = (os.fstat(file.fileno()).st_size for file in self._files)
        return answers, failures

    async def add(self, answered: bool, line: dict[str, Any]) -> None:
        """Write a line; return when it is on the disk. Errors: OSError when it cannot be."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((answered, line, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="batch results")
        await written

    async def _write(self) -> None:
        while group := self._waiting:
            self._waiting = []
            try:
                await asyncio.to_thread(self._append, group)
                for answered, line, _ in group:
                    self.done.add(line["custom_id"])
                    self.sums.add(answered, line)
            except Exception as error:
                for *_, written in group:
                    if not written.done():
                        written.set_exception(error)
                continue
            for *_, written in group:
                if not written.done():
                    written.set_result(None)

    def _append(self, group: list[tuple[bool, dict[str, Any], asyncio.Future[None]]]) -> None:
        for file, answered in zip(self._files, (True, False), strict=True):
            data = b"".join(
                json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
                for is_answer, line, _ in group
                if is_answer is answered
            )
            if not data:
                continue
            end = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                os.fdatasync(file.fileno())
            except OSError:
                # What stands there half would be read as a line with the next one's bytes.
                os.ftruncate(file.fileno(), end)
                raise

    def close(self) -> None:
        """Let go of both files; what was added is in them."""
        for file in self._files:
            file.close()


def sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _open(path: Path) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    # Unbuffered: what write() took is the system's.
    file: Any = os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)
    sync_folder(path.parent)
    opened: BinaryIO = file
    return opened


def _whole_lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Lines that have their end; the file is cut behind the last of them."""
    whole = 0
    with os.fdopen(os.dup(file.fileno()), "rb") as reader:
        reader.seek(0)
        for raw in reader:
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                # The last group, of which the machine lost a part.
                line = None
            if line is None:
                break
            whole += len(raw)
            yield line
    os.ftruncate(file.fileno(), whole)
