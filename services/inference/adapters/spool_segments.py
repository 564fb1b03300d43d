"""The spool's files: segments on the local disk, made before they are needed and read at a start.

Owns the files below one directory, and nobody else writes there (a lock says so). Knows nothing of
what the records mean. All but `write` is for the start or for whoever reads.

Crash argument: a group that was being written may be there in part, in any part. A frame's checksum
tells a whole record from a torn one, and reading stops at the first that is not whole; nothing that
was told to anybody stood behind it, because telling waits for the group. What is cut off is kept
beside, never thrown away. A segment before the last was synced whole before the next one was made:
damage there is no torn tail, and the spool refuses to open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from inference.adapters import spool_codec
from inference.domain import records
from inference.domain.journal import Contradiction, Ref

log = structlog.get_logger()

SEGMENT_BYTES: Final = 16 * 1024 * 1024
MAX_BYTES: Final = 1024 * 1024 * 1024
# Answers to settled requests are kept while the spool is smaller than this.
RETAIN_BYTES: Final = 256 * 1024 * 1024

_SUFFIX: Final = ".spool"


class SpoolUnusable(Exception):
    """The spool cannot be opened or written; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a segment is made, how much is kept for replays, and the hard bound."""

    segment_bytes: int = SEGMENT_BYTES
    retain_bytes: int = RETAIN_BYTES
    max_bytes: int = MAX_BYTES


def limits_for(max_bytes: int) -> Limits:
    """Limits with a quarter of the whole for replays."""
    return Limits(retain_bytes=max_bytes // 4, max_bytes=max_bytes)


@dataclass(slots=True)
class Segment:
    """One file, and how much of it is written."""

    number: int
    path: Path
    size: int


class Segments:
    """All segments of a directory, the oldest first."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._directory = directory
        self._limits = limits
        self._all: list[Segment] = []
        self._lock_fd = -1
        self._fd = -1
        self._spare: Path | None = None
        # Whether the last try to have the next one ready succeeded. Not whether it is there: while
        # a spare becomes a segment and another is made, nobody knows of any lack of space.
        self.has_spare = False
        self._said = False

    # Opening

    def open(self, take: Callable[[records.Record, Ref], None]) -> None:
        """Lock the directory and have `take` see every record there is; cut off a torn tail.

        Errors: SpoolUnusable, OSError.
        """
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        for leftover in self._directory.glob("*.making"):
            leftover.unlink()
        paths = sorted(self._directory.glob(f"*{_SUFFIX}"))
        for index, path in enumerate(paths):
            self._read(path, take, last=index == len(paths) - 1)

    def begin(self, first: bytes) -> None:
        """Begin a new segment with a record, after all there are. Errors: OSError."""
        number = self._all[-1].number + 1 if self._all else 0
        self._fd = self._make_segment(number, first)
        self._make_spare()

    def _take_lock(self) -> None:
        self._lock_fd = os.open(
            self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpoolUnusable(
                f"the spool in {self._directory} belongs to a running process; "
                "stop it, or give this one its own TOLLBOOK_SPOOL_DIR"
            ) from None

    def _read(self, path: Path, take: Callable[[records.Record, Ref], None], last: bool) -> None:
        number = int(path.name.removesuffix(_SUFFIX))
        if self._all and number != self._all[-1].number + 1:
            raise SpoolUnusable(f"{path}: the segment before it is missing; restore it")
        data = path.read_bytes()
        whole = min(len(spool_codec.MAGIC), len(data))
        try:
            for record, offset, length in spool_codec.scan(memoryview(data)):
                take(record, Ref(number, offset, length))
                whole = offset + length
        except (spool_codec.Malformed, Contradiction, ValueError) as error:
            raise SpoolUnusable(
                f"{path}: {error} (after byte {whole}); keep the directory and "
                "start with an empty TOLLBOOK_SPOOL_DIR, then report this"
            ) from error
        tail = data[whole:]
        # The allocated rest of a segment is zeros; anything else is a torn group.
        torn = bool(tail.strip(b"\0")) or not data.startswith(spool_codec.MAGIC)
        if torn and not last:
            raise SpoolUnusable(
                f"{path}: damaged at byte {whole}, with whole segments after it; "
                "restore the file or set it aside with all after it"
            )
        if torn:
            aside = path.with_name(f"{path.name}.torn-at-{whole}")
            self._write_file(aside, tail.rstrip(b"\0"))
            log.warning("torn tail cut off", segment=path.name, at=whole, kept_in=aside.name)
        if not data.startswith(spool_codec.MAGIC):
            # Not even its first record was whole: it holds nothing that was promised.
            path.unlink()
            return
        if len(data) > whole:
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fdatasync(file.fileno())
        self._all.append(Segment(number, path, whole))

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:016d}{_SUFFIX}"

    def _make_segment(self, number: int, first: bytes) -> int:
        """Make a segment that begins with a record, durable under its name; gives its fd."""
        making = self._spare or self._allocate()
        self._spare = None
        fd = os.open(making, os.O_WRONLY | os.O_CLOEXEC)
        _write_all(fd, spool_codec.MAGIC + first)
        os.fsync(fd)
        path = self._path(number)
        os.rename(making, path)
        self._sync_directory()
        self._all.append(Segment(number, path, len(spool_codec.MAGIC) + len(first)))
        return fd

    def _allocate(self) -> Path:
        """Take a segment's space from the disk before anything depends on it."""
        path = self._directory / "next.making"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._limits.segment_bytes)
            os.fsync(fd)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        return path

    def _make_spare(self) -> None:
        """Have the next segment ready. Without it admission is closed, so a full disk
        stops new requests while those under way still have room.
        """
        if self._spare is None:
            try:
                self._spare = self._allocate()
            except OSError as error:
                # Tried again with each group: it is said once.
                if not self._said:
                    log.error("no space for the next spool segment", error=str(error))
                    self._said = True
        self.has_spare = self._spare is not None
        self._said = self._said and not self.has_spare

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _write_file(self, path: Path, data: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)

    @property
    def size(self) -> int:
        """Bytes written, of all segments."""
        return sum(segment.size for segment in self._all)

    @property
    def last(self) -> Segment:
        """The one that is written to."""
        return self._all[-1]

    # Writing: in the commit thread

    def write(self, group: bytes, first: bytes | None) -> None:
        """Append to the last segment and have it on the disk; with `first` begin the next one.

        Where the next one has no place the last goes on, beyond what was allocated for it: who is
        under way may need less than a whole segment, and that much the disk may have.
        """
        last = self.last
        if group:
            _write_all(self._fd, group)
            os.fdatasync(self._fd)
            last.size += len(group)
        self._make_spare()
        if first is not None and self._spare is not None:
            os.ftruncate(self._fd, last.size)
            os.fsync(self._fd)
            old, self._fd = self._fd, self._make_segment(last.number + 1, first)
            os.close(old)
            self._make_spare()

    # Reading back, and forgetting

    def is_durable(self, ref: Ref) -> bool:
        """True when the record is on disk."""
        last = self.last
        return ref.segment >= 0 and (
            ref.segment < last.number or ref.offset + ref.length <= last.size
        )

    def read(self, ref: Ref) -> records.Record:
        """The record at a ref. Errors: OSError, Malformed (the file was changed)."""
        fd = os.open(self._path(ref.segment), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return spool_codec.decode(os.pread(fd, ref.length, ref.offset))
        finally:
            os.close(fd)

    def drop_old(self, needed: int | None) -> Iterator[int]:
        """Delete the oldest segments before the first that is needed, down to what is kept for
        replays; gives the number of each.
        """
        while (
            len(self._all) > 1
            and (needed is None or self._all[0].number < needed)
            and self.size > self._limits.retain_bytes
        ):
            gone = self._all.pop(0)
            gone.path.unlink()
            yield gone.number

    def release(self) -> None:
        """Let go of the files."""
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._fd = self._lock_fd = -1


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
