"""Files and batches on the local disk, each whole or absent, beside the spool.

Owns a directory, with one process at a time. `files/ID.data` has a file's bytes and
`files/ID.json` says whose it is: without the second the first is not there for callers, but may
be a batch's results under way. `batches/ID.json` is a batch; it is replaced by a rename. What is
said to be there is on the disk: file and folder are synced before.

Knows no request and no engine.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from inference.adapters.batch_results import sync_folder
from inference.domain.batches import UNDER_WAY, Batch
from kernel import errors

T = TypeVar("T")

MAX_FILE_BYTES: Final = 128 << 20
MAX_FILES: Final = 1_000
MAX_ACCOUNT_BYTES: Final = 2 << 30
MAX_OPEN_BATCHES: Final = 64
MAX_KEPT_BATCHES: Final = 1_000
_COPY_BYTES: Final = 1 << 20


class BatchStoreUnusable(Exception):
    """The directory cannot be used, or holds what this program did not write."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of an account. `purpose` is OpenAI's: `batch` or `batch_output`."""

    id: str
    account_id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int


class BatchStore:
    """All files and batches. Its methods block on the disk; call long ones in a thread."""

    def __init__(self, directory: Path) -> None:
        """Open it, and drop what a dead process left half. Errors: BatchStoreUnusable."""
        self._files_folder = directory / "files"
        self._batches_folder = directory / "batches"
        try:
            for folder in (directory, self._files_folder, self._batches_folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BatchStoreUnusable(f"batches cannot be kept in {directory}: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise BatchStoreUnusable(f"another process has {directory}") from error
        files = _read_all(self._files_folder, lambda text: File(**json.loads(text)))
        self.files = {file.id: file for file in files}
        self.batches = {one.id: one for one in _read_all(self._batches_folder, Batch.from_json)}
        self._reading: Counter[str] = Counter()
        self._sweep()

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def _sweep(self) -> None:
        """Remove data that nobody can name: of uploads that never ended."""
        wanted = set(self.files)
        for batch in self.batches.values():
            if batch.status in UNDER_WAY:
                wanted |= {batch.output_file_id, batch.error_file_id}
        for path in self._files_folder.glob("*.data"):
            if path.stem not in wanted:
                path.unlink()

    # Files

    def path_of(self, file_id: str) -> Path:
        """Where a file's bytes are, or will be."""
        return self._files_folder / f"{file_id}.data"

    def file(self, account_id: str, file_id: str) -> File:
        """A file of the account. Errors: NotFound, also for another account's."""
        found = self.files.get(file_id)
        if found is None or found.account_id != account_id:
            raise errors.NotFound(f"no file {file_id!r}", reason="UNKNOWN_FILE")
        return found

    def files_of(self, account_id: str) -> list[File]:
        """The account's files, the newest first."""
        own = [one for one in tuple(self.files.values()) if one.account_id == account_id]
        return sorted(own, key=lambda one: one.id, reverse=True)

    def room_for_file(self, account_id: str) -> None:
        """Errors: FailedPrecondition when the account has all the files it may have."""
        own = self.files_of(account_id)
        kept = sum(one.bytes for one in own)
        if len(own) >= MAX_FILES or kept >= MAX_ACCOUNT_BYTES:
            raise errors.FailedPrecondition(
                f"the account has {len(own)} files of {kept} bytes, and may have {MAX_FILES} of"
                f" {MAX_ACCOUNT_BYTES}: delete some",
                reason="TOO_MANY_FILES",
            )

    def take_in(self, source: BinaryIO, file: File) -> None:
        """Keep a caller's file; its `bytes` are the source's."""
        path = self.path_of(file.id)
        try:
            with _new(path) as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)
                _sync(target)
            self.publish(file)
        except BaseException:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise

    def publish(self, file: File) -> None:
        """Have callers see a file whose bytes are there."""
        _replace(self._files_folder / f"{file.id}.json", json.dumps(asdict(file)))
        self.files[file.id] = file

    @contextmanager
    def reading(self, file_id: str) -> Iterator[None]:
        """Nobody deletes a file while the batch that reads it is being written down."""
        self._reading[file_id] += 1
        try:
            yield
        finally:
            self._reading[file_id] -= 1
            if not self._reading[file_id]:
                del self._reading[file_id]

    def forget_file(self, file: File) -> None:
        """Have no caller see a file any more; `erase` it then. Does not touch the disk, so that
        nobody comes between the look and the deed.

        Errors: FailedPrecondition while a batch reads it.
        """
        users = [
            batch.id
            for batch in tuple(self.batches.values())
            if batch.input_file_id == file.id and batch.status in UNDER_WAY
        ]
        if users or self._reading[file.id]:
            raise errors.FailedPrecondition(
                f"batch {users[0] if users else 'under way'} reads it: cancel that first",
                reason="FILE_IN_USE",
            )
        self.files.pop(file.id, None)

    def erase(self, file: File) -> None:
        """Take a forgotten file off the disk; what cannot be taken off is seen again."""
        try:
            (self._files_folder / f"{file.id}.json").unlink(missing_ok=True)
            self.path_of(file.id).unlink(missing_ok=True)
        except OSError:
            self.files[file.id] = file
            raise

    def lines(self, file_id: str) -> Iterator[bytes]:
        """A file's lines, without their ends."""
        with self.path_of(file_id).open("rb") as file:
            for line in file:
                yield line.rstrip(b"\r\n")

    # Batches

    def batch(self, account_id: str, batch_id: str) -> Batch:
        """A batch of the account. Errors: NotFound, also for another account's."""
        found = self.batches.get(batch_id)
        if found is None or found.account_id != account_id:
            raise errors.NotFound(f"no batch {batch_id!r}", reason="UNKNOWN_BATCH")
        return found

    def batches_of(self, account_id: str) -> list[Batch]:
        """The account's batches, the newest first."""
        own = [one for one in tuple(self.batches.values()) if one.account_id == account_id]
        return sorted(own, key=lambda one: one.id, reverse=True)

    def under_way(self) -> list[Batch]:
        """All batches that are not at their end, the oldest first."""
        found = [one for one in tuple(self.batches.values()) if one.status in UNDER_WAY]
        return sorted(found, key=lambda one: one.id)

    def room_for_batch(self, account_id: str) -> None:
        """Make room: the oldest ended ones are forgotten. Errors: FailedPrecondition."""
        own = self.batches_of(account_id)
        under_way = sum(one.status in UNDER_WAY for one in own)
        if under_way >= MAX_OPEN_BATCHES:
            raise errors.FailedPrecondition(
                f"{under_way} batches of this account are under way, and no more may be: wait for"
                " one to end, or cancel it",
                reason="TOO_MANY_BATCHES",
            )
        ended = [one for one in own if one.status not in UNDER_WAY]
        for old in ended[MAX_KEPT_BATCHES - under_way - 1 :]:
            (self._batches_folder / f"{old.id}.json").unlink(missing_ok=True)
            del self.batches[old.id]

    def save(self, batch: Batch, text: str) -> None:
        """Keep a batch as `text` has it (`Batch.to_json`)."""
        _replace(self._batches_folder / f"{batch.id}.json", text)
        self.batches[batch.id] = batch


def _read_all(folder: Path, read: Callable[[str], T]) -> Iterator[T]:
    for leftover in folder.glob("*.making"):
        leftover.unlink()
    for path in sorted(folder.glob("*.json")):
        try:
            yield read(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BatchStoreUnusable(
                f"{path} cannot be read: {error}. Move it away to go on without it"
            ) from error


def _new(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace(path: Path, text: str) -> None:
    """Write a file whole, and have both it and its name on the disk."""
    making = path.with_suffix(".making")
    making.unlink(missing_ok=True)
    with _new(making) as file:
        file.write(text.encode())
        _sync(file)
    making.replace(path)
    sync_folder(path.parent)
