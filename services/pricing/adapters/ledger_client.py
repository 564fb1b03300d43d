"""The ledger as pricing sees it: a gRPC client that reads runs of leaves and appends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import grpc.aio
import structlog

from kernel import grpcs
from tollbook.ledger.v1 import ledger_pb2, ledger_pb2_grpc

log = structlog.get_logger()

_BACKOFF_MS: Final = (50, 100, 250, 500, 1_000)
BATCH: Final = 4_000


class Run(NamedTuple):
    """Consecutive leaves of a log that share a pin."""

    log: str
    first_position: int
    leaves: list[bytes]
    pin: int

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

    async def read(self, name: str, first: int, end: int) -> AsyncIterator[Run]:
        """Read [first, end) of a log once."""
        if first >= end:
            return
        request = ledger_pb2.ReadEventsRequest(
            log=name, from_position=first, to_position=end, max_batch=BATCH
        )
        async for answer in self.stub.ReadEvents(request):
            yield Run(name, answer.first_position, list(answer.leaves), answer.control_size)

    async def follow(self, name: str, first: int) -> AsyncIterator[Run]:
        """Read a log from a position on, for ever; a lost ledger is waited for."""
        position = first
        failures = 0
        while True:
            request = ledger_pb2.ReadEventsRequest(
                log=name, from_position=position, max_batch=BATCH, follow=True
            )
            try:
                async for answer in self.stub.ReadEvents(request, wait_for_ready=True):
                    if answer.first_position != position:
                        raise RuntimeError(
                            f"log {name} jumped from {position} to {answer.first_position}"
                        )
                    failures = 0
                    if answer.leaves:
                        run = Run(name, position, list(answer.leaves), answer.control_size)
                        yield run
                        position = run.end_position
            except grpc.aio.AioRpcError as error:
                # A log that is shorter than what was read from it was replaced or cut:
                # waiting would hide it.
                if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                    raise
                log.warning("ledger away", log=name, position=position, error=error.details())
            await asyncio.sleep(_BACKOFF_MS[min(failures, len(_BACKOFF_MS) - 1)] / 1000)
            failures += 1
