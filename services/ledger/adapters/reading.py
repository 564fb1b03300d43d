"""ReadEvents and ReadArrow: a log's entries to readers, in order and without a gap.

Writes the answers' bytes itself, in compiled loops, instead of building a
message with an object for each leaf: that is what a reader's speed depends on.
The run that follows is fetched, and the message that follows made, while one is on its way to the
reader, and no more than that, so a slow reader holds little memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from kernel import leaf as leaf_format
from kernel.errors import InvalidArgument, OutOfRange
from kernel.merkle import leaf_hash
from kernel.tiles import encode_bundle
from ledger.adapters import arrow_ipc, database
from ledger.adapters.ahead import one_ahead
from ledger.adapters.archive import ArchiveError
from ledger.adapters.errors import away, segment_not_there
from ledger.adapters.feed import Feed, LogView
from ledger.adapters.leaves import LeafReader
from ledger.domain import leafrun
from ledger.domain.columns import Numbers
from ledger.domain.compiled import reading
from ledger.domain.leafrun import LeafRun
from ledger.domain.matching import LeafFilter
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.usage.v1 import usage_pb2 as usage

FindView = Callable[[str, int], Awaitable[LogView]]

DEFAULT_EVENTS: Final = 2_000
DEFAULT_ARROW: Final = 8_192
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024

_WORTH_A_THREAD: Final = 256


class Piece(NamedTuple):
    """Consecutive leaves under one pin: what one message speaks of."""

    run: LeafRun
    chosen: Numbers
    control_size: int
    log_size: int
    is_filtered: bool


class Wanted(NamedTuple):
    """What a reader asked for."""

    log: str
    first: int
    end: int
    """0: the log's size as of the call, or no end when it follows."""
    batch: int
    follow: bool
    filter: LeafFilter | None


class EventReader:
    """Answers the two calls that stream entries."""

    def __init__(self, feed: Feed, leaves: LeafReader, find: FindView) -> None:
        self._feed = feed
        self._leaves = leaves
        self._find = find

    async def read_events(self, request: pb.ReadEventsRequest) -> AsyncIterator[bytes]:
        """Serialized ReadEventsResponses; a message never spans a pin."""
        wanted = Wanted(
            request.log,
            request.from_position,
            request.to_position,
            request.max_batch or DEFAULT_EVENTS,
            request.follow,
            _filter_of(request.filter) if request.HasField("filter") else None,
        )
        with_hashes = request.passed_over_hashes and wanted.filter is not None

        def message(piece: Piece) -> bytes:
            return events_message(piece, with_hashes)

        async for data in self._messages(wanted, message):
            yield data

    async def read_arrow(self, request: pb.ReadArrowRequest) -> AsyncIterator[bytes]:
        """Serialized ReadArrowResponses: the schema, then a record batch each."""
        wanted = Wanted(
            request.log,
            request.from_position,
            request.to_position,
            request.max_batch or DEFAULT_ARROW,
            False,
            _filter_of(request.filter) if request.HasField("filter") else None,
        )
        yield pb.ReadArrowResponse(
            first_position=wanted.first,
            next_position=wanted.first,
            ipc=arrow_ipc.SCHEMA.serialize().to_pybytes(),
        ).SerializeToString()
        async for data in self._messages(wanted, arrow_message):
            yield data

    async def _messages(
        self, wanted: Wanted, message: Callable[[Piece], bytes]
    ) -> AsyncGenerator[bytes, None]:
        """Serialized messages, in order: those of the next run are made while these are sent."""

        def of_run(view: LogView, run: LeafRun) -> list[bytes]:
            return [message(piece) for piece in _pieces(wanted, view, run)]

        async def made() -> AsyncGenerator[list[bytes], None]:
            async with contextlib.aclosing(self._runs(wanted)) as runs:
                async for view, run in runs:
                    yield await _aside(len(run), of_run, view, run)

        async with contextlib.aclosing(one_ahead(made())) as lists:
            async for messages in lists:
                for data in messages:
                    yield data

    async def _runs(self, wanted: Wanted) -> AsyncGenerator[tuple[LogView, LeafRun], None]:
        """The log in runs. Errors: those that the contract tells."""
        position = wanted.first
        view = await self._first_view(wanted)
        end = wanted.end or (None if wanted.follow else view.size)
        if not wanted.follow and end is not None:
            end = min(end, view.size)
        ahead: asyncio.Task[LeafRun] | None = None
        try:
            while end is None or position < end:
                changed = self._feed.waiter()
                view = self._feed.view(wanted.log)
                available = view.size if end is None else min(view.size, end)
                if position >= available:
                    await changed.wait()
                    continue
                try:
                    run = await (ahead or self._leaves.run(view.log_id, position, available))
                except database.AWAY:
                    raise away() from None
                except ArchiveError as error:
                    raise segment_not_there(error) from None
                ahead, position = None, run.end
                if position < available:
                    # Kept by name until it is done: a task that nobody holds may vanish.
                    ahead = asyncio.create_task(self._leaves.run(view.log_id, position, available))
                yield view, run
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.wait([ahead])
                if not ahead.cancelled():
                    ahead.exception()  # whatever it is, nobody waits for that run any more

    async def _first_view(self, wanted: Wanted) -> LogView:
        view = await self._find(wanted.log, wanted.first)
        if wanted.first > view.size:
            raise OutOfRange(
                f"log {wanted.log!r} has {view.size} entries; position {wanted.first} is beyond"
                " them",
                reason="BEYOND_THE_LOG",
                metadata={"log": wanted.log, "size": str(view.size)},
            )
        if wanted.end and wanted.end < wanted.first:
            raise InvalidArgument(
                f"to_position {wanted.end} is before from_position {wanted.first}",
                reason="INVALID_RANGE",
            )
        if wanted.follow:
            return view
        # "The log's size as of the call" means what is committed now, not what the feed saw.
        return await self._find(wanted.log, max(wanted.end, view.size + 1))


async def _aside(leaves: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do it beside the event loop, if it is much: the compiled loops hold no lock."""
    if leaves < _WORTH_A_THREAD:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def _pieces(wanted: Wanted, view: LogView, run: LeafRun) -> Iterator[Piece]:
    """What each message of a run speaks of, one after the other."""
    for part, control_size in _by_pin(view, run, wanted.batch):
        chosen = np.arange(len(part)) if wanted.filter is None else wanted.filter.choose(part)
        yield Piece(part, chosen, control_size, view.size, wanted.filter is not None)


def _by_pin(view: LogView, run: LeafRun, batch: int) -> Iterator[tuple[LeafRun, int]]:
    """The parts of a run that a message may hold, each with its pin."""
    at = run.first
    while at < run.end:
        control_size, pin_end = view.pin_at(at)
        part = run.part(at, min(run.end, pin_end, at + batch)).within(MAX_MESSAGE_BYTES)
        yield part, control_size
        at = part.end


def _filter_of(wanted: pb.EventFilter) -> LeafFilter:
    return LeafFilter(
        account_id=wanted.account_id,
        served_model=wanted.served_model,
        from_ns=wanted.from_time.ToNanoseconds() if wanted.HasField("from_time") else None,
        to_ns=wanted.to_time.ToNanoseconds() if wanted.HasField("to_time") else None,
        dispositions=frozenset(wanted.dispositions),
    )


def events_message(piece: Piece, with_hashes: bool) -> bytes:
    """A serialized ReadEventsResponse."""
    run, chosen = piece.run, piece.chosen
    rest = pb.ReadEventsResponse(
        first_position=run.first,
        control_size=piece.control_size,
        log_size=piece.log_size,
        next_position=run.end,
    )
    if piece.is_filtered:
        rest.positions.extend((chosen + run.first).tolist())
        if with_hashes:
            passed = np.delete(np.arange(len(run)), chosen)
            # Few ask for them: not worth the seconds that compiling the vector loop takes.
            rest.passed_over_hashes = b"".join(leaf_hash(run.leaf(index)) for index in passed)
    # A message's fields may come in any order, so what is not leaves is written first.
    head = rest.SerializeToString()
    out = np.empty(len(head) + reading.wire_size(run.starts, run.ends, chosen), dtype=np.uint8)
    out[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    reading.write_wire(run.data, run.starts, run.ends, chosen, out, len(head))
    return out.tobytes()


def arrow_message(piece: Piece) -> bytes:
    """A serialized ReadArrowResponse."""
    run, chosen = piece.run, piece.chosen
    leaf_bytes = int((run.ends[chosen] - run.starts[chosen]).sum())
    size = arrow_ipc.batch_size(len(chosen), leaf_bytes)
    rest = pb.ReadArrowResponse(first_position=run.first, next_position=run.end)
    head = rest.SerializeToString() + _IPC_TAG + _varint(size)
    out = np.empty(len(head) + size, dtype=np.uint8)
    out[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    arrow_ipc.write_batch(run, chosen, piece.control_size, leaf_bytes, out[len(head) :])
    return out.tobytes()


_IPC_TAG: Final = bytes([pb.ReadArrowResponse.IPC_FIELD_NUMBER << 3 | 2])


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def warm_up() -> None:
    """Have every compiled loop ready: the first reader need not wait for the compiler."""
    leaf = leaf_format.encode(1, 0, 0, 0, b"", usage.UsageRecord().SerializeToString())
    run = leafrun.of_bundles(0, [encode_bundle([leaf])], 1)
    chosen = LeafFilter("account", "model", 0, 1).choose(run)
    events_message(Piece(run, chosen, 0, 1, is_filtered=True), with_hashes=True)
    arrow_message(Piece(run, chosen, 0, 1, is_filtered=True))
