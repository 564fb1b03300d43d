"""LedgerService over gRPC: appends, reads, proofs. Translates, and decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import Message

from kernel import grpcs, merkle
from kernel import leaf as leaf_format
from kernel.errors import (
    FailedPrecondition,
    NotFound,
    OutOfRange,
    Unavailable,
)
from kernel.placement import partition_of_log
from ledger.adapters import database, overview
from ledger.adapters.appender import Appender
from ledger.adapters.archive import Archive, ArchiveError
from ledger.adapters.errors import away, segment_not_there
from ledger.adapters.feed import Feed, LogView
from ledger.adapters.keys import origin_of
from ledger.adapters.leaves import LeafReader
from ledger.adapters.nodes import NodeReader
from ledger.adapters.reading import EventReader
from ledger.domain.appending import Wanted
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.ledger.v1 import ledger_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE: Final = "tollbook.ledger.v1.LedgerService"

_SIGNING_RETRY_MS: Final = 100
_MAX_WAIT_S: Final = 3_600.0


def _as_bytes(answer: Any, request: type[Message]) -> Any:
    """A streaming method whose answers are serialized already."""
    return grpc.unary_stream_rpc_method_handler(
        answer, request_deserializer=request.FromString, response_serializer=bytes
    )


class LedgerAnswers(ledger_pb2_grpc.LedgerServiceServicer):
    """Answers each call from the feed, the tables and the appenders."""

    def __init__(
        self,
        pool: Any,
        feed: Feed,
        appenders: Mapping[str, Appender],
        origin: str,
        gap_limit_ms: int,
        archive: Archive,
    ) -> None:
        self._pool = pool
        self._feed = feed
        self._appenders = appenders
        self._origin = origin
        self._gap_limit_ms = gap_limit_ms
        self._nodes = NodeReader(pool)
        self._leaves = LeafReader(pool, archive)
        self._reader = EventReader(feed, self._leaves, self._view)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Have a server give these answers."""
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server(self, server)
        # Afterwards, so that they stand in the place of the generated ones, which take messages.
        server.add_registered_method_handlers(
            SERVICE,
            {
                "ReadEvents": _as_bytes(self.ReadEvents, pb.ReadEventsRequest),
                "ReadArrow": _as_bytes(self.ReadArrow, pb.ReadArrowRequest),
            },
        )

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
            raise away() from None
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
            raise away() from None
        return pb.AppendResponse(
            position=placed.position,
            size=size,
            root=root,
            inclusion_proof=proof,
            replayed=placed.replayed,
        )

    def ReadEvents(  # type: ignore[override]  # noqa: N802 - the contract's name
        self, request: pb.ReadEventsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """Stream entries, as serialized ReadEventsResponses."""
        del context
        return self._reader.read_events(request)

    def ReadArrow(  # type: ignore[override]  # noqa: N802 - the contract's name
        self, request: pb.ReadArrowRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """Stream entries as Arrow, as serialized ReadArrowResponses."""
        del context
        return self._reader.read_arrow(request)

    async def GetEntry(  # noqa: N802 - the contract's name
        self, request: pb.GetEntryRequest, context: Context
    ) -> pb.GetEntryResponse:
        """One entry."""
        del context
        view = await self._view(request.log, request.position + 1)
        self._check_position(view, request.position)
        try:
            leaves = await self._leaves.leaves(view.log_id, request.position, request.position + 1)
            aside = b""
            if leaf_format.decode(leaves[0]).aside:
                aside = await self._pool.fetchval(
                    "SELECT value FROM log_aside WHERE log_id = $1 AND position = $2",
                    view.log_id,
                    request.position,
                )
        except database.AWAY:
            raise away() from None
        except ArchiveError as error:
            raise segment_not_there(error) from None
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
        wait_s = grpcs.time_to_work_s(context.time_remaining(), _MAX_WAIT_S)
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
                async with asyncio.timeout(rest_s):
                    await changed.wait()
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
            # Out of the tiles, so that an entry stays provable whose leaf is out of reach.
            leaf_hash = await self._nodes.run(view.log_id, lambda read: read(0, request.position))
            proof = await self._nodes.run(
                view.log_id, lambda read: merkle.inclusion_proof(request.position, size, read)
            )
            note = await self._pool.fetchval(
                "SELECT note FROM checkpoint WHERE log_id = $1 AND size = $2", view.log_id, size
            )
        except database.AWAY:
            raise away() from None
        return pb.GetInclusionProofResponse(
            tree_size=size,
            leaf_hash=leaf_hash,
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
            raise away() from None
        return pb.GetConsistencyProofResponse(
            second_size=second, proof=proof, first_root=first_root, second_root=second_root
        )

    async def ListLogs(  # noqa: N802 - the contract's name
        self, request: pb.ListLogsRequest, context: Context
    ) -> pb.ListLogsResponse:
        """All logs."""
        del context
        try:
            await self._feed.refresh()
        except database.AWAY:
            raise away() from None
        return pb.ListLogsResponse(
            logs=[self._state(view, not request.without_pins) for view in self._feed.views()]
        )

    async def ListPartitions(  # noqa: N802 - the contract's name
        self, request: pb.ListPartitionsRequest, context: Context
    ) -> pb.ListPartitionsResponse:
        """Who works on each usage log."""
        del request, context
        try:
            return await overview.partitions(self._pool)
        except database.AWAY:
            raise away() from None

    async def ListSegments(  # noqa: N802 - the contract's name
        self, request: pb.ListSegmentsRequest, context: Context
    ) -> pb.ListSegmentsResponse:
        """Where the leaves of each log are kept."""
        del context
        if request.log:
            await self._view(request.log)
        try:
            return await overview.segments(self._pool, request.log)
        except database.AWAY:
            raise away() from None

    async def ListStreams(  # noqa: N802 - the contract's name
        self, request: pb.ListStreamsRequest, context: Context
    ) -> pb.ListStreamsResponse:
        """What came of producers' streams, and what is missing."""
        del context
        log_id = (await self._view(request.log)).log_id if request.log else None
        try:
            return await overview.streams(self._pool, request, log_id, self._gap_limit_ms)
        except database.AWAY:
            raise away() from None

    def _state(self, view: LogView, with_pins: bool = True) -> pb.LogState:
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
            if is_usage and with_pins
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
