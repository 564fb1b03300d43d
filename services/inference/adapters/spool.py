"""The spool: append-only segments on the local disk, made durable in groups.

Owns the files below one directory, and nobody else writes there (a lock says
so). A record that append() took is durable when its group is: one fdatasync for
all that came while the last one ran. The order of the records is the order of
append(), in memory and on disk, so a durable record proves all before it.

Crash argument: a group that was being written may be there in part, in any
part. A frame's checksum tells a whole record from a torn one, and reading stops
at the first that is not whole; nothing that was told to anybody stood behind
it, because telling waits for the group. What is cut off is kept beside, never
thrown away. A segment before the last was synced whole before the next one was
made: damage there is no torn tail, and the spool refuses to open.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from inference.adapters import spool_codec
from inference.domain import records
from inference.domain.journal import Contradiction, Journal, Ref

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
class _Segment:
    number: int
    path: Path
    size: int


class Spool:
    """An open spool. Everything but the commit thread runs on one event loop."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._directory = directory
        self._limits = limits
        self._segments: list[_Segment] = []
        self.journal = Journal()
        self._lock_fd = -1
        self._fd = -1
        self._spare: Path | None = None
        self._buffer = bytearray()
        self._refs: list[tuple[Ref, int]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._wanted = asyncio.Event()
        self._committer: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._reserved_bytes = 0
        self._closing = False
        # Called before each group: gives the engine's counters when they changed.
        self.count_source: Callable[[], records.EngineCount | None] = lambda: None
        # Called after each group: there may be records for the broker.
        self.on_commit: Callable[[], None] = lambda: None
        # Set when a write failed: nothing more can be promised, the process must go.
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    @classmethod
    def open(cls, directory: Path, limits: Limits | None = None) -> Spool:
        """Read what is there, cut off a torn tail, begin a new segment.

        Errors: SpoolUnusable.
        """
        spool = cls(directory, limits or Limits())
        try:
            spool._open()
        except OSError as error:
            spool._release()
            raise SpoolUnusable(
                f"the spool in {directory} cannot be used: {error.strerror or error}; "
                "give TOLLBOOK_SPOOL_DIR a directory of this user with free space"
            ) from error
        except BaseException:
            spool._release()
            raise
        return spool

    # Opening

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        for leftover in self._directory.glob("*.making"):
            leftover.unlink()
        paths = sorted(self._directory.glob(f"*{_SUFFIX}"))
        for index, path in enumerate(paths):
            self._read(path, last=index == len(paths) - 1)
        number = self._segments[-1].number + 1 if self._segments else 0
        self._fd = self._make_segment(number, spool_codec.encode(self.journal.snapshot()))
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

    def _read(self, path: Path, last: bool) -> None:
        number = int(path.name.removesuffix(_SUFFIX))
        if self._segments and number != self._segments[-1].number + 1:
            raise SpoolUnusable(f"{path}: the segment before it is missing; restore it")
        data = path.read_bytes()
        whole = min(len(spool_codec.MAGIC), len(data))
        try:
            for record, offset, length in spool_codec.scan(memoryview(data)):
                self.journal.apply(record, Ref(number, offset, length))
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
        self._segments.append(_Segment(number, path, whole))

    # Segments

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
        self._segments.append(_Segment(number, path, len(spool_codec.MAGIC) + len(first)))
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
                log.error("no space for the next spool segment", error=str(error))

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

    def _drop_old(self) -> None:
        """Delete the oldest segments that nothing needs, down to what is kept for replays."""
        needed = self.journal.oldest_needed_segment()
        while (
            len(self._segments) > 1
            and (needed is None or self._segments[0].number < needed)
            and self._bytes() > self._limits.retain_bytes
        ):
            gone = self._segments.pop(0)
            gone.path.unlink()
            self.journal.forget_segment(gone.number)

    def _bytes(self) -> int:
        return sum(segment.size for segment in self._segments)

    # Admission

    def reserve(self, size: int) -> bool:
        """Set bytes aside for a request; False when the spool could not hold them.

        Whoever got True gives them back with release().
        """
        if self._spare is None:
            # Perhaps the disk has space again: the commit thread tries.
            self._wanted.set()
            return False
        taken = self._bytes() + len(self._buffer) + self._reserved_bytes
        if self._closing or taken + size > self._limits.max_bytes:
            return False
        self._reserved_bytes += size
        return True

    def release(self, size: int) -> None:
        """Give back what reserve() set aside."""
        self._reserved_bytes -= size

    # Appending

    def append(self, record: records.Record, durable: Callable[[], None] | None = None) -> None:
        """Take a record in; `durable` is called when it and all before it are on disk."""
        if self._closing:
            raise RuntimeError("the spool is closed")
        frame = spool_codec.encode(record)
        # The engine's ids are counted by whoever runs it: folding them here would be twice.
        if not isinstance(record, records.Progress | records.Embedded):
            ref = Ref(length=len(frame))
            self.journal.apply(record, ref)
            self._refs.append((ref, len(self._buffer)))
        self._buffer += frame
        if durable is not None:
            self._callbacks.append(durable)
        self._wanted.set()

    async def durable(self) -> None:
        """Return when everything appended so far is on disk. Errors: the write's own."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if not done.done():
                done.set_result(None)

        self._callbacks.append(tell)
        self._wanted.set()
        await asyncio.wait((done, self.failed), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            done.cancel()
            raise self.failed.result()

    def start(self) -> None:
        """Begin to commit."""
        self._committer = asyncio.create_task(self._commit_for_ever(), name="spool")

    async def _commit_for_ever(self) -> None:
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                while self._buffer or self._callbacks or self._spare is None:
                    await self._commit()
                    if self._spare is None:
                        break
                if self._closing:
                    return
        except Exception as error:
            log.error("the spool cannot be written", error=str(error))
            if not self.failed.done():
                self.failed.set_result(error)

    async def _commit(self) -> None:
        count = self.count_source()
        if count is not None and self._buffer:
            self._append_count(count)
        group, self._buffer = self._buffer, bytearray()
        refs, self._refs = self._refs, []
        callbacks, self._callbacks = self._callbacks, []
        segment = self._segments[-1]
        for ref, offset in refs:
            ref.segment, ref.offset = segment.number, segment.size + offset
        full = segment.size + len(group) >= self._limits.segment_bytes
        # Taken in the same instant as the group: what the next segment begins with
        # includes this group and nothing after it.
        first = spool_codec.encode(self.journal.snapshot()) if full else None
        await asyncio.get_running_loop().run_in_executor(
            self._thread, self._write, bytes(group), segment, first
        )
        for callback in callbacks:
            callback()
        self.on_commit()
        if first is not None:
            self._drop_old()

    def _append_count(self, count: records.EngineCount) -> None:
        record = records.Noted(count, None)
        frame = spool_codec.encode(record)
        self.journal.apply(record, Ref())
        self._buffer += frame

    def _write(self, group: bytes, segment: _Segment, first: bytes | None) -> None:
        """In the commit thread: the only place that waits for the disk."""
        if group:
            _write_all(self._fd, group)
            os.fdatasync(self._fd)
            segment.size += len(group)
        if first is not None:
            os.ftruncate(self._fd, segment.size)
            os.fsync(self._fd)
            old, self._fd = self._fd, self._make_segment(segment.number + 1, first)
            os.close(old)
        self._make_spare()

    # Reading back

    def is_durable(self, ref: Ref) -> bool:
        """True when the record is on disk."""
        segment = self._segments[-1]
        return ref.segment >= 0 and (
            ref.segment < segment.number or ref.offset + ref.length <= segment.size
        )

    def read(self, ref: Ref) -> records.Record:
        """The record at a ref. Errors: OSError, Malformed (the file was changed)."""
        fd = os.open(self._path(ref.segment), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return spool_codec.decode(os.pread(fd, ref.length, ref.offset))
        finally:
            os.close(fd)

    async def close(self) -> None:
        """Commit what is appended and let go of the files."""
        self._closing = True
        self._wanted.set()
        if self._committer is not None:
            await self._committer
        self._release()

    def _release(self) -> None:
        self._thread.shutdown()
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._fd = self._lock_fd = -1


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
