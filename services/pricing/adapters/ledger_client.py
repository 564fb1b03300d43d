"""The ledger as pricing sees it: a gRPC client that reads runs of leaves and appends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Final, NamedTuple, TypeVar

import grpc
import grpc.aio
import structlog

from kernel import errors, grpcs
from kernel.placement import CONTROL_LOG
from pricing.domain.control import needs_aside
from tollbook.ledger.v1 import ledger_pb2, ledger_pb2_grpc

log = structlog.get_logger()

BATCH: Final = 4_000
CALL_TIMEOUT_S: Final = 10.0
SIZE_MOVED: Final = "SIZE_MOVED"
_BACKOFF_MS: Final = (50, 100, 250, 500, 1_000)

T = TypeVar("T")


class LogReplacedError(RuntimeError):
    """A log is shorter than, or not contiguous with, what was read of it before."""


class Run(NamedTuple):
    """Consecutive leaves of a log that share a pin."""

    log: str
    first_position: int
    leaves: list[bytes]
    pin: int
    asides: Mapping[int, bytes]
    """Records too large for a leaf, by position. Control log alone."""

    @property
    def end_position(self) -> int:
        """Position after the last leaf."""
        return self.first_position + len(self.leaves)


class Ledger:
    """One channel to the ledger."""

    def __init__(self, address: str) -> None:
        self._channel = grpcs.channel(address)
        self.stub: ledger_pb2_grpc.LedgerServiceAsyncStub = ledger_pb2_grpc.LedgerServiceStub(
            self._channel
        )

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def answer(self, call: Awaitable[T]) -> T:
        """Await a call to the ledger for a caller of ours.

        Errors: AlreadyExists and OutOfRange as the ledger said; Unavailable
        for all else, since our caller can do nothing about it but try again.
        """
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            said = error.details() or error.code().name
            if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                raise errors.AlreadyExists(said, "IDEMPOTENCY_CONFLICT") from None
            if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                raise errors.OutOfRange(said, "POSITION_NOT_THERE") from None
            raise errors.Unavailable(
                f"the ledger does not answer: {said}", reason="LEDGER_AWAY"
            ) from None

    async def entry(self, name: str, position: int) -> ledger_pb2.GetEntryResponse:
        """One entry of a log. Errors: as `answer`."""
        return await self.answer(
            self.stub.GetEntry(
                ledger_pb2.GetEntryRequest(log=name, position=position), timeout=CALL_TIMEOUT_S
            )
        )

    async def logs(self, without_pins: bool = False) -> ledger_pb2.ListLogsResponse:
        """All logs, their sizes and pins. Errors: as `answer`."""
        request = ledger_pb2.ListLogsRequest(without_pins=without_pins)
        return await self.answer(self.stub.ListLogs(request, timeout=CALL_TIMEOUT_S))

    async def size(self, name: str) -> int:
        """Entries of a log now; 0 where there is none of that name. Errors: as `answer`."""
        listed = await self.logs(without_pins=True)
        return next((state.size for state in listed.logs if state.log == name), 0)

    async def append(
        self, name: str, key: str, payload: bytes, expected_size: int | None = None
    ) -> ledger_pb2.AppendResponse:
        """Append a record under an idempotency key. Errors: as `answer`.

        With `expected_size` only if the log has that size: else FailedPrecondition(SIZE_MOVED).
        """
        request = ledger_pb2.AppendRequest(
            log=name, idempotency_key=key, payload=payload, expected_size=expected_size
        )
        return await self.answer(self._appended(request))

    async def _appended(self, request: ledger_pb2.AppendRequest) -> ledger_pb2.AppendResponse:
        try:
            return await self.stub.Append(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            moved = error.code() is grpc.StatusCode.FAILED_PRECONDITION
            if moved and request.HasField("expected_size"):
                raise errors.FailedPrecondition(error.details() or "", SIZE_MOVED) from None
            raise

    async def root(self, name: str, size: int) -> bytes:
        """Root of a log's tree at a size, at least 1. Errors: as `answer`."""
        request = ledger_pb2.GetConsistencyProofRequest(log=name, first_size=size, second_size=size)
        proof = await self.answer(self.stub.GetConsistencyProof(request, timeout=CALL_TIMEOUT_S))
        return proof.first_root

    async def read(self, name: str, first: int, end: int) -> AsyncIterator[Run]:
        """Read [first, end) of a log once. Errors: grpc's own."""
        if first >= end:
            return
        request = ledger_pb2.ReadEventsRequest(
            log=name, from_position=first, to_position=end, max_batch=BATCH
        )
        async for answer in self.stub.ReadEvents(request):
            yield await self._run(name, answer)

    async def follow(self, name: str, first: int) -> AsyncIterator[Run]:
        """Read a log from a position on, for ever; a lost ledger is waited for.

        Errors: LogReplacedError, because waiting would hide it.
        """
        position = first
        failures = 0
        while True:
            request = ledger_pb2.ReadEventsRequest(
                log=name, from_position=position, max_batch=BATCH, follow=True
            )
            try:
                async for answer in self.stub.ReadEvents(request, wait_for_ready=True):
                    if answer.first_position != position and answer.leaves:
                        raise LogReplacedError(
                            f"log {name} jumped from {position} to {answer.first_position}"
                        )
                    failures = 0
                    if answer.leaves:
                        run = await self._run(name, answer)
                        yield run
                        position = run.end_position
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                    raise LogReplacedError(
                        f"log {name} no longer reaches position {position}, which was read from"
                        f" it before: {error.details()}"
                    ) from None
                log.warning("ledger away", log=name, position=position, error=error.details())
            await asyncio.sleep(_BACKOFF_MS[min(failures, len(_BACKOFF_MS) - 1)] / 1000)
            failures += 1

    async def _run(self, name: str, answer: ledger_pb2.ReadEventsResponse) -> Run:
        asides: dict[int, bytes] = {}
        if name == CONTROL_LOG:
            for position, raw in enumerate(answer.leaves, answer.first_position):
                if needs_aside(raw):
                    request = ledger_pb2.GetEntryRequest(log=name, position=position)
                    asides[position] = (await self.stub.GetEntry(request)).aside
        return Run(name, answer.first_position, list(answer.leaves), answer.control_size, asides)
