"""LedgerService over gRPC: appends, reads, proofs. Translates, and decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc.aio

from kernel import leaf as leaf_format
from kernel import merkle
from kernel.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unavailable,
)
from kernel.placement import partition_of_log
from kernel.tiles import TILE_WIDTH
from ledger.adapters import database, store
from ledger.adapters.appender import Appender
from ledger.adapters.feed import Feed, LogView
from ledger.adapters.keys import origin_of
from ledger.adapters.nodes import NodeReader
from ledger.domain.appending import Wanted
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.ledger.v1 import ledger_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_BATCH: Final = 2_000
_MAX_RESPONSE_BYTES: Final = 4 * 1024 * 1024
_MAX_CHUNKS: Final = 256
_SIGNING_RETRY_MS: Final = 100
_MAX_WAIT_S: Final = 3_600.0


class LedgerAnswers(ledger_pb2_grpc.LedgerServiceServicer):
    """Answers each call from the feed, the tables and the appenders."""

    def __init__(
        self, pool: Any, feed: Feed, appenders: Mapping[str, Appender], origin: str
    ) -> None:
        self._pool = pool
        self._feed = feed
        self._appenders = appenders
        self._origin = origin
        self._nodes = NodeReader(pool)

    async def _view(self, name: str, at_least: int = 0) -> LogView:
        """A log's view; read anew when what is asked for may have come since."""
        try:
            view = self._feed.view(name)
            if view.size >= at_least:
                return view
        except NotFound:
            pass
        try:
            await self._feed.refresh()
        except database.AWAY:
            raise _away() from None
        return self._feed.view(name)

    async def Append(  # noqa: N802 - the contract's name
        self, request: pb.AppendRequest, context: Context
    ) -> pb.AppendResponse:
        """Append one record."""
        del context
        appender = self._appenders.get(request.log)
        if appender is None:
            await self._view(request.log)
            raise FailedPrecondition(
                f"log {request.log!r} takes records from its Kafka partition alone",
                reason="NOT_AN_APPEND_LOG",
                metadata={"log": request.log},
            )
        placed = await appender.append(
            Wanted(
                request.idempotency_key,
                request.payload,
                request.expected_size if request.HasField("expected_size") else None,
            )
        )
        size = placed.position + 1
        view = await self._view(request.log, size)
        try:
            root = await self._nodes.run(view.log_id, lambda read: merkle.root_at(size, read))
            proof = await self._nodes.run(
                view.log_id, lambda read: merkle.inclusion_proof(placed.position, size, read)
            )
        except database.AWAY:
            raise _away() from None
        return pb.AppendResponse(
            position=placed.position,
            size=size,
            root=root,
            inclusion_proof=proof,
            replayed=placed.replayed,
        )

    async def ReadEvents(  # noqa: N802 - the contract's name
        self, request: pb.ReadEventsRequest, context: Context
    ) -> AsyncIterator[pb.ReadEventsResponse]:
        """Stream entries in order; a message never spans a pin."""
        del context
        name, position = request.log, request.from_position
        view = await self._view(name, position)
        if position > view.size:
            raise OutOfRange(
                f"log {name!r} has {view.size} entries; position {position} is beyond them",
                reason="BEYOND_THE_LOG",
                metadata={"log": name, "size": str(view.size)},
            )
        if request.to_position and request.to_position < position:
            raise InvalidArgument(
                f"to_position {request.to_position} is before from_position {position}",
                reason="INVALID_RANGE",
            )
        if not request.follow:
            # "The log's size as of the call" means what is committed now, not what the feed saw.
            view = await self._view(name, max(request.to_position, view.size + 1))
        end = request.to_position or (None if request.follow else view.size)
        if not request.follow and end is not None and end > view.size:
            end = view.size
        batch = request.max_batch or _DEFAULT_BATCH
        while end is None or position < end:
            changed = self._feed.waiter()
            view = self._feed.view(name)
            available = view.size if end is None else min(view.size, end)
            if position >= available:
                await changed.wait()
                continue
            control_size, pin_end = view.pin_at(position)
            leaves = await self._leaves(view, position, min(available, pin_end, position + batch))
            yield pb.ReadEventsResponse(
                first_position=position,
                leaves=leaves,
                control_size=control_size,
                log_size=view.size,
            )
            position += len(leaves)

    async def _leaves(self, view: LogView, first: int, end: int) -> list[bytes]:
        """Leaves from `first` on, up to `end` or the size of a message."""
        try:
            rows = await self._pool.fetch(
                "SELECT first_position, entries, leaves FROM log_chunk WHERE log_id = $1"
                " AND first_position >= $2 AND first_position < $3 ORDER BY first_position"
                " LIMIT $4",
                view.log_id,
                first // TILE_WIDTH * TILE_WIDTH,
                end,
                _MAX_CHUNKS + TILE_WIDTH,
            )
        except database.AWAY:
            raise _away() from None
        if rows:
            end = min(end, rows[-1]["first_position"] + rows[-1]["entries"])
        leaves = store.cut_leaves(view.log_id, rows, first, end)
        size = 0
        for count, leaf in enumerate(leaves):
            size += len(leaf)
            if size > _MAX_RESPONSE_BYTES and count:
                return leaves[:count]
        return leaves

    async def GetEntry(  # noqa: N802 - the contract's name
        self, request: pb.GetEntryRequest, context: Context
    ) -> pb.GetEntryResponse:
        """One entry."""
        del context
        view = await self._view(request.log, request.position + 1)
        self._check_position(view, request.position)
        try:
            leaves = await store.read_leaves(
                self._pool, view.log_id, request.position, request.position + 1
            )
            aside = b""
            if leaf_format.decode(leaves[0]).aside:
                aside = await self._pool.fetchval(
                    "SELECT value FROM log_aside WHERE log_id = $1 AND position = $2",
                    view.log_id,
                    request.position,
                )
        except database.AWAY:
            raise _away() from None
        control_size, _ = view.pin_at(request.position)
        return pb.GetEntryResponse(leaf=leaves[0], control_size=control_size, aside=aside)

    @staticmethod
    def _check_position(view: LogView, position: int) -> None:
        if position >= view.size:
            raise OutOfRange(
                f"log {view.name!r} has {view.size} entries; there is none at {position}",
                reason="BEYOND_THE_LOG",
                metadata={"log": view.name, "size": str(view.size)},
            )

    async def GetCheckpoint(  # noqa: N802 - the contract's name
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
        """The newest signed checkpoint, waited for when `min_size` asks for more."""
        await self._view(request.log)
        # Answer a moment before the deadline: an answer that says why beats a cut call.
        wait_s = min(max(context.time_remaining() - 0.1, 0), _MAX_WAIT_S)
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            changed = self._feed.waiter()
            view = self._feed.view(request.log)
            signed = view.checkpoint
            if signed is not None and signed.size >= request.min_size:
                return pb.GetCheckpointResponse(
                    note=signed.note, size=signed.size, root=signed.root
                )
            rest_s = deadline - asyncio.get_running_loop().time()
            try:
                if rest_s <= 0:
                    raise TimeoutError
                await asyncio.wait_for(changed.wait(), rest_s)
            except TimeoutError:
                have = "nothing" if signed is None else f"{signed.size} entries"
                raise Unavailable(
                    f"of log {request.log!r} {have} are signed so far, {request.min_size} are"
                    f" asked for (the log has {view.size}): is the signer running?",
                    reason="NOT_SIGNED_YET",
                    metadata={"log": request.log},
                    retry_after_ms=_SIGNING_RETRY_MS,
                ) from None

    async def GetInclusionProof(  # noqa: N802 - the contract's name
        self, request: pb.GetInclusionProofRequest, context: Context
    ) -> pb.GetInclusionProofResponse:
        """Proof that a leaf stands in a tree."""
        del context
        view = await self._view(request.log, max(request.position + 1, request.tree_size))
        size = request.tree_size or await self._signed_size(view)
        self._check_size(view, size)
        if request.position >= size:
            raise OutOfRange(
                f"position {request.position} is not in the tree of {size} entries",
                reason="BEYOND_THE_TREE",
            )
        try:
            leaves = await store.read_leaves(
                self._pool, view.log_id, request.position, request.position + 1
            )
            proof = await self._nodes.run(
                view.log_id, lambda read: merkle.inclusion_proof(request.position, size, read)
            )
            note = await self._pool.fetchval(
                "SELECT note FROM checkpoint WHERE log_id = $1 AND size = $2", view.log_id, size
            )
        except database.AWAY:
            raise _away() from None
        return pb.GetInclusionProofResponse(
            tree_size=size,
            leaf_hash=merkle.leaf_hash(leaves[0]),
            proof=proof,
            checkpoint=note or b"",
        )

    async def _signed_size(self, view: LogView) -> int:
        if view.checkpoint is None:
            raise Unavailable(
                f"no checkpoint of log {view.name!r} is signed yet: is the signer running?",
                reason="NOT_SIGNED_YET",
                retry_after_ms=_SIGNING_RETRY_MS,
            )
        return view.checkpoint.size

    @staticmethod
    def _check_size(view: LogView, size: int) -> None:
        if size > view.size:
            raise OutOfRange(
                f"log {view.name!r} has {view.size} entries; there is no tree of {size}",
                reason="BEYOND_THE_LOG",
                metadata={"log": view.name, "size": str(view.size)},
            )

    async def GetConsistencyProof(  # noqa: N802 - the contract's name
        self, request: pb.GetConsistencyProofRequest, context: Context
    ) -> pb.GetConsistencyProofResponse:
        """Proof that one tree is a prefix of another."""
        del context
        first = request.first_size
        view = await self._view(request.log, max(first, request.second_size))
        second = request.second_size or view.size
        self._check_size(view, second)
        if first > second:
            raise OutOfRange(
                f"a tree of {first} entries is no prefix of one of {second}",
                reason="BEYOND_THE_TREE",
            )
        try:
            proof, first_root, second_root = await self._nodes.run(
                view.log_id,
                lambda read: (
                    merkle.consistency_proof(first, second, read),
                    merkle.root_at(first, read),
                    merkle.root_at(second, read),
                ),
            )
        except database.AWAY:
            raise _away() from None
        return pb.GetConsistencyProofResponse(
            second_size=second, proof=proof, first_root=first_root, second_root=second_root
        )

    async def ListLogs(  # noqa: N802 - the contract's name
        self, request: pb.ListLogsRequest, context: Context
    ) -> pb.ListLogsResponse:
        """All logs."""
        del request, context
        try:
            await self._feed.refresh()
        except database.AWAY:
            raise _away() from None
        return pb.ListLogsResponse(logs=[self._state(view) for view in self._feed.views()])

    def _state(self, view: LogView) -> pb.LogState:
        is_usage = partition_of_log(view.name) is not None
        return pb.LogState(
            log=view.name,
            origin=origin_of(self._origin, view.name),
            size=view.size,
            root=view.root,
            next_offset=view.next_offset if is_usage else 0,
            epoch=view.epoch if is_usage else 0,
            pins=[
                pb.Pin(from_position=position, control_size=size)
                for position, size in zip(view.pin_positions, view.pin_sizes, strict=True)
            ]
            if is_usage
            else [],
            dispositions=[
                pb.DispositionCount(disposition=disposition, entries=entries)
                for disposition, entries in zip(
                    (
                        pb.DISPOSITION_ACCEPTED,
                        pb.DISPOSITION_DUPLICATE,
                        pb.DISPOSITION_CONFLICT,
                        pb.DISPOSITION_REJECTED,
                    ),
                    view.dispositions,
                    strict=True,
                )
            ],
        )


def _away() -> Unavailable:
    return Unavailable("the ledger's database is away", reason="DATABASE_AWAY", retry_after_ms=500)
