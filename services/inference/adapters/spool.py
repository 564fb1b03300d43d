"""The spool: append-only records on the local disk, made durable in groups.

A record that append() took is durable when its group is: one fdatasync for all that came while the
last one ran. The order of the records is the order of append(), in memory and on disk, so a durable
record proves all before it. What a crash may leave, spool_segments.py says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from inference.adapters import spool_codec
from inference.adapters.spool_segments import Limits, Segments, SpoolUnusable
from inference.domain import records
from inference.domain.journal import Journal, Ref

log = structlog.get_logger()


class Spool:
    """An open spool. Everything but the commit thread runs on one event loop."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._limits = limits
        self._segments = Segments(directory, limits)
        self.journal = Journal()
        self._buffer = bytearray()
        self._refs: list[tuple[Ref, int]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._waiting: list[asyncio.Future[None]] = []
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
            spool._segments.open(spool.journal.apply)
            spool._segments.begin(spool_codec.encode(spool.journal.snapshot()))
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

    # Admission

    def reserve(self, size: int) -> bool:
        """Set bytes aside for a request; False when the spool could not hold them.

        Whoever got True gives them back with release().
        """
        if not self._segments.has_spare:
            # Perhaps the disk has space again: the commit thread tries.
            self._wanted.set()
            return False
        taken = self._segments.size + len(self._buffer) + self._reserved_bytes
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
        if self.failed.done():
            raise self.failed.result()
        # One future, which a failure ends as well: to wait for two would cost more than all the
        # rest of a record.
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._wanted.set()
        await done

    def start(self) -> None:
        """Begin to commit."""
        self._committer = asyncio.create_task(self._commit_for_ever(), name="spool")

    async def _commit_for_ever(self) -> None:
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                if not self._segments.has_spare:
                    # Also with nothing to write: perhaps the disk has space again.
                    await self._commit()
                while self._buffer or self._callbacks or self._waiting:
                    await self._commit()
                if self._closing:
                    return
        except Exception as error:
            log.error("the spool cannot be written", error=str(error))
            if not self.failed.done():
                self.failed.set_result(error)
            for done in self._waiting:
                if not done.done():
                    done.set_exception(error)

    async def _commit(self) -> None:
        count = self.count_source()
        if count is not None and self._buffer:
            self._append_count(count)
        group, self._buffer = self._buffer, bytearray()
        refs, self._refs = self._refs, []
        callbacks, self._callbacks = self._callbacks, []
        waited = len(self._waiting)
        segment = self._segments.last
        for ref, offset in refs:
            ref.segment, ref.offset = segment.number, segment.size + offset
        full = segment.size + len(group) >= self._limits.segment_bytes
        # Taken in the same instant as the group: what the next segment begins with
        # includes this group and nothing after it.
        first = spool_codec.encode(self.journal.snapshot()) if full else None
        await asyncio.get_running_loop().run_in_executor(
            self._thread, self._segments.write, bytes(group), first
        )
        for callback in callbacks:
            callback()
        # Of those who came meanwhile none is told: theirs is the next group.
        for done in self._waiting[:waited]:
            if not done.done():
                done.set_result(None)
        del self._waiting[:waited]
        self.on_commit()
        if first is not None:
            for number in self._segments.drop_old(self.journal.oldest_needed_segment()):
                self.journal.forget_segment(number)

    def _append_count(self, count: records.EngineCount) -> None:
        record = records.Noted(count, None)
        frame = spool_codec.encode(record)
        self.journal.apply(record, Ref())
        self._buffer += frame

    # Reading back

    def is_durable(self, ref: Ref) -> bool:
        """True when the record is on disk."""
        return self._segments.is_durable(ref)

    def read(self, ref: Ref) -> records.Record:
        """The record at a ref. Errors: OSError, Malformed (the file was changed)."""
        return self._segments.read(ref)

    async def close(self) -> None:
        """Commit what is appended and let go of the files."""
        self._closing = True
        self._wanted.set()
        if self._committer is not None:
            await self._committer
        self._release()

    def _release(self) -> None:
        self._thread.shutdown()
        self._segments.release()
