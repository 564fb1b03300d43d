"""One usage log as its owner works on it: fetch, admit, commit, over and over.

Owns the log's state in memory and the order of things: batch n+1 is planned
while batch n commits, and nothing of n+1 is written before n is. Any failure
ends the run; whoever runs it takes the log over again and starts from the head.
Reads and writes through two ports, so that a simulation runs this very code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol, TypeVar

import structlog
from opentelemetry import trace

from kernel import leaf as leaf_format
from kernel import placement, telemetry
from kernel.placement import partition_of_log
from ledger.adapters.source import Fetched, LastRead
from ledger.adapters.store import Head
from ledger.domain import batch as batching
from ledger.domain import columnar
from ledger.domain.batch import MAX_STREAMS_KEPT, Batch, LogState, Record
from ledger.domain.columnar import Reading
from ledger.domain.columns import Columns
from ledger.domain.scan import account_of, trace_of
from ledger.domain.streams import StreamState

log = structlog.get_logger()
_tracer = telemetry.tracer("ledger")

_WORTH_A_THREAD: Final = 512
"""Fewer records than this are done sooner than a thread is found for them."""
_GATHER_S: Final = 0.01
"""How long records gather behind a few that were read, before more are asked for. Each batch costs
the broker, the database, this process and every follower as much as hundreds of records do; without
it the processors are busy with commits of one or two. A record that comes alone does not wait.
"""
_MAX_LINKS: Final = 16
_MAX_PLACES: Final = 4

T = TypeVar("T")


class Log(Protocol):
    """A usage log that is held for one epoch; see held_log.py for what each call gives."""

    head: Head

    async def last_leaf(self) -> bytes | None: ...  # noqa: D102
    async def bind_topic(self, topic_id: bytes) -> None: ...  # noqa: D102
    async def load(self) -> LogState: ...  # noqa: D102
    async def leaves_at(self, positions: Iterable[int]) -> dict[int, bytes]: ...  # noqa: D102
    async def load_streams(  # noqa: D102
        self, stream_ids: Iterable[str]
    ) -> dict[str, StreamState]: ...
    async def write(self, batch: Batch) -> int: ...  # noqa: D102


class Source(Protocol):
    """The partition that feeds it; see source.py for what each call gives."""

    async def start(self, known_topic_id: bytes, last: LastRead | None) -> bytes: ...  # noqa: D102
    async def fetch(self, offset: int) -> Fetched: ...  # noqa: D102
    async def close(self) -> None: ...  # noqa: D102


class PartitionWriter:
    """The owner of one usage log, for one epoch."""

    def __init__(
        self,
        held: Log,
        source: Source,
        batch_records: int,
        committed: Callable[[str], None],
        partitions: int = 0,
    ) -> None:
        """`partitions`: how many accounts are placed over; 0 when that is not known."""
        head = held.head
        self._partitions = partitions
        self.head = head
        self.size = head.size
        self.next_offset = head.next_offset
        self.high_watermark: int | None = None
        """The offset after the partition's last record, once a fetch told."""
        self._log = held
        self._source = source
        self._batch_records = batch_records
        self._committed = committed
        self._commit: asyncio.Task[None] | None = None
        self._commit_began_s = 0.0

    @property
    def committing_s(self) -> float:
        """How long the commit under way has taken by now; 0 when there is none."""
        if self._commit is None or self._commit.done():
            return 0.0
        return asyncio.get_running_loop().time() - self._commit_began_s

    async def run(self, stopped: asyncio.Event) -> None:
        """Work until stopped. Errors: FencedError, SourceError, BrokenLogError, database.AWAY."""
        head = self.head
        topic_id = await self._source.start(head.topic_id, await self._last_read())
        if topic_id != head.topic_id:
            await self._log.bind_topic(topic_id)
        state = await self._log.load()
        log.info("owning", log=head.name, epoch=head.epoch, size=head.size, offset=head.next_offset)
        fetch = asyncio.ensure_future(self._source.fetch(state.next_offset))
        try:
            while not stopped.is_set():
                fetched = await self._next(fetch, stopped)
                if fetched is None:
                    break
                self.high_watermark = fetched.high_watermark
                # One fetch ahead and no more: a slow database slows the reading.
                fetch = asyncio.ensure_future(self._fetch_after(fetched))
                for columns, next_offset in _parts(fetched, self._batch_records):
                    await self._take(state, columns, next_offset)
            if self._commit is not None:
                await self._commit
        finally:
            await _end(fetch)
            if self._commit is not None:
                await _end(self._commit)
            await self._source.close()

    async def _fetch_after(self, last: Fetched) -> Fetched:
        """What follows on a fetch."""
        if 0 < len(last.columns) < _WORTH_A_THREAD:
            await asyncio.sleep(_GATHER_S)
        return await self._source.fetch(last.next_offset)

    async def _last_read(self) -> LastRead | None:
        """The record that the log ends with."""
        data = await self._log.last_leaf()
        if data is None:
            return None
        leaf = leaf_format.decode(data)

        def is_same(record: Record) -> bool:
            offset, timestamp_ms, key, value = record
            return data == leaf_format.encode(
                leaf.disposition, leaf.reason, offset, timestamp_ms, key or b"", value or b""
            )

        return LastRead(leaf.offset, is_same)

    async def _next(self, fetch: asyncio.Future[Fetched], stopped: asyncio.Event) -> Fetched | None:
        """The fetch's result; None when stopped first. A commit that fails meanwhile raises."""
        stop = asyncio.ensure_future(stopped.wait())
        try:
            while True:
                waits: set[asyncio.Future[Any]] = {fetch, stop}
                if self._commit is not None and not self._commit.done():
                    waits.add(self._commit)
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if self._commit is not None and self._commit.done():
                    self._commit.result()
                    self._commit = None
                if fetch.done():
                    return fetch.result()
                if stop.done():
                    return None
        finally:
            stop.cancel()

    async def _take(self, state: LogState, columns: Columns, next_offset: int) -> None:
        """Admit records and start their commit, once the commit before it is done."""
        count = len(columns)
        reading, suspects = await _compute(count, _read, state, columns)
        bodies: dict[bytes, bytes] = {}
        if suspects.positions:
            wanted = [at for positions in suspects.positions.values() for at in positions]
            if max(wanted) >= self.size:
                await self._settle()
            bodies = batching.known_bodies(suspects, await self._log.leaves_at(wanted))
        await self._load_streams(state, reading.stream_ids())
        batch = await _compute(count, columnar.plan, state, reading, suspects, bodies, next_offset)
        self._look_at_places(reading)
        await self._settle()
        self._commit_began_s = asyncio.get_running_loop().time()
        self._commit = asyncio.ensure_future(self._write(batch, _links(reading)))

    async def _settle(self) -> None:
        """Wait for the commit under way."""
        if self._commit is not None:
            await self._commit
            self._commit = None

    async def _load_streams(self, state: LogState, wanted: set[str]) -> None:
        """Have the state of every stream that the records speak of."""
        streams = state.streams
        missing = wanted - streams.keys()
        if not missing:
            return
        if len(streams) + len(missing) > MAX_STREAMS_KEPT:
            # What is thrown away is read again when it is needed, so it must be written first.
            await self._settle()
            keep = wanted & streams.keys()
            state.streams = streams = {stream_id: streams[stream_id] for stream_id in keep}
        known = await self._log.load_streams(missing)
        for stream_id in missing:
            streams[stream_id] = known.get(stream_id) or StreamState()

    async def _write(self, batch: Batch, links: list[trace.Link]) -> None:
        head = self.head
        with _tracer.start_as_current_span(
            "ledger.commit", kind=trace.SpanKind.CONSUMER, links=links
        ) as span:
            span.set_attribute(telemetry.LOG, head.name)
            span.set_attribute(telemetry.POSITION, batch.first_position)
            span.set_attribute("tollbook.entries", batch.entries)
            pin = await self._log.write(batch)
        self.size = batch.size
        self.next_offset = batch.next_offset
        self._committed(head.name)
        log.debug(
            "committed",
            log=head.name,
            first=batch.first_position,
            size=batch.size,
            pin=pin,
            counts=batch.counts,
        )
        if batch.exceptions:
            _say_exceptions(head, batch)

    def _look_at_places(self, reading: Reading) -> None:
        """Say it when events come to a log that is not their account's: a producer places them
        over another number of partitions, and what it sends twice may be in two logs.

        A few of each batch are looked at: whoever places wrongly does so with nearly all.
        """
        here = partition_of_log(self.head.name)
        for index in _some_usable(reading, _MAX_PLACES) if self._partitions else ():
            account = account_of(reading.columns.value(index) or b"")
            place = placement.partition_of(account, self._partitions) if account else here
            if place != here:
                log.error(
                    "WRONG PARTITION",
                    log=self.head.name,
                    account_id=account,
                    offset=int(reading.columns.offset[index]),
                    belongs_in=place,
                    partitions=self._partitions,
                )
                return


def _parts(fetched: Fetched, most: int) -> Iterator[tuple[Columns, int]]:
    """Cut what was fetched into batches: records, and the offset that follows them."""
    columns = fetched.columns
    for first in range(0, len(columns), most):
        part = columns.part(first, min(first + most, len(columns)))
        is_last = first + most >= len(columns)
        yield part, fetched.next_offset if is_last else int(part.offset[-1]) + 1
    if not len(columns) and fetched.next_offset > fetched.from_offset:
        # Nothing but markers: the head must move past them, or they are read again for ever.
        yield columns, fetched.next_offset


def _read(state: LogState, columns: Columns) -> tuple[Reading, batching.Suspects]:
    reading = columnar.read(columns)
    return reading, columnar.find_suspects(state.index, reading)


async def _compute(records: int, work: Callable[..., T], *arguments: Any) -> T:
    """Do what is pure computing: beside the event loop, which writes the batch before, if long."""
    if records < _WORTH_A_THREAD:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def _say_exceptions(head: Head, batch: Batch) -> None:
    accepted, duplicate, conflict, rejected = batch.counts
    first = batch.exceptions[0]
    log.warning(
        "records kept but not accepted",
        log=head.name,
        conflict=conflict,
        rejected=rejected,
        accepted=accepted,
        duplicate=duplicate,
        first_position=first.position,
        first_disposition=first.disposition,
        first_reason=first.reason,
    )


def _some_usable(reading: Reading, most: int) -> list[int]:
    """The first few records that are usable: bounded for any batch."""
    first = reading.usable[:most]
    return [index for index, usable in enumerate(first.tolist()) if usable]


def _links(reading: Reading) -> list[trace.Link]:
    """Links to the requests of the first few records: enough to join."""
    links: list[trace.Link] = []
    if not telemetry.records():
        return links
    for index in _some_usable(reading, _MAX_LINKS):
        parent = telemetry.context_of_ids(*trace_of(reading.columns.value(index) or b""))
        context = trace.get_current_span(parent).get_span_context()
        if context.is_valid:
            links.append(trace.Link(context))
    return links


async def _end(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        # Whatever it failed with, the failure that ended the run is the one to tell.
        task.exception()


def partition_of(head: Head) -> int:
    """The partition that feeds a usage log."""
    partition = partition_of_log(head.name)
    if partition is None:
        raise ValueError(f"log {head.name} is not fed by a partition")
    return partition
