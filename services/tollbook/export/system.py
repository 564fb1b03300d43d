"""The running system as the exporter sees it: two gRPC services and nothing behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from kernel import grpcs
from kernel.errors import Unavailable
from tollbook.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tollbook.listing import all_balances
from tollbook.pricing.v1 import pricing_pb2, pricing_pb2_grpc

_BATCH: Final = 5_000
_IDLE_TIMEOUT_S: Final = 3_600.0

T = TypeVar("T")


class System:
    """Clients of the ledger and of pricing. Use it as an async context."""

    def __init__(self, ledger_address: str, pricing_address: str, wait_s: float) -> None:
        """`wait_s`: how long any one thing is waited for."""
        self._wait_s = wait_s
        self._ledger_channel = grpcs.channel(ledger_address)
        self._pricing_channel = grpcs.channel(pricing_address)
        self._ledger: Any = ledger_pb2_grpc.LedgerServiceStub(self._ledger_channel)
        self._pricing: Any = pricing_pb2_grpc.PricingServiceStub(self._pricing_channel)
        self._control: Any = pricing_pb2_grpc.ControlServiceStub(self._pricing_channel)

    async def __aenter__(self) -> System:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._ledger_channel.close()
        await self._pricing_channel.close()

    async def _ask(self, what: str, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise Unavailable(
                f"{what}: {error.details() or error.code().name}", reason="SERVICE_AWAY"
            ) from None

    async def sizes(self) -> dict[str, int]:
        """Size of every log now."""
        answer: ledger_pb2.ListLogsResponse = await self._ask(
            "the ledger lists no logs",
            self._ledger.ListLogs(
                ledger_pb2.ListLogsRequest(without_pins=True),
                timeout=self._wait_s,
                wait_for_ready=True,
            ),
        )
        return {state.log: state.size for state in answer.logs}

    async def balances(self, at_least: Mapping[str, int]) -> pricing_pb2.ListBalancesResponse:
        """All balances, once these sizes are applied."""
        request = pricing_pb2.ListBalancesRequest(wait_for=_positions(at_least.items()))
        answer: pricing_pb2.ListBalancesResponse = await self._ask(
            "pricing lists no balances",
            all_balances(self._pricing, self._wait_s, request),
        )
        return answer

    async def cut(self, at_least: Iterable[tuple[str, int]]) -> pricing_pb2.CreateCutResponse:
        """A new cut, at these sizes or beyond."""
        request = pricing_pb2.CreateCutRequest(wait_for=_positions(at_least))
        answer: pricing_pb2.CreateCutResponse = await self._ask(
            "pricing makes no cut",
            self._control.CreateCut(request, timeout=self._wait_s, wait_for_ready=True),
        )
        return answer

    async def checkpoint(self, log: str, min_size: int) -> ledger_pb2.GetCheckpointResponse:
        """A log's newest signed checkpoint, of at least a size."""
        request = ledger_pb2.GetCheckpointRequest(log=log, min_size=min_size)
        answer: ledger_pb2.GetCheckpointResponse = await self._ask(
            f"the ledger has no checkpoint of {log} at size {min_size}",
            self._ledger.GetCheckpoint(request, timeout=self._wait_s, wait_for_ready=True),
        )
        return answer

    async def entries(self, log: str, size: int) -> AsyncIterator[tuple[int, bytes]]:
        """(position, leaf) of a log's first `size` entries."""
        if not size:
            return
        request = ledger_pb2.ReadEventsRequest(log=log, to_position=size, max_batch=_BATCH)
        expected = 0
        try:
            async for answer in self._ledger.ReadEvents(
                request, timeout=_IDLE_TIMEOUT_S, wait_for_ready=True
            ):
                if answer.first_position != expected:
                    raise Unavailable(
                        f"the ledger gave {log} position {answer.first_position} where {expected}"
                        " is next",
                        reason="LOG_NOT_CONTIGUOUS",
                    )
                for position, leaf in enumerate(answer.leaves, expected):
                    yield position, leaf
                expected += len(answer.leaves)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(
                f"reading {log} ended at position {expected}:"
                f" {error.details() or error.code().name}",
                reason="SERVICE_AWAY",
            ) from None
        if expected != size:
            raise Unavailable(
                f"the ledger gave {expected} entries of {log}; its checkpoint signs {size}",
                reason="LOG_NOT_CONTIGUOUS",
            )

    async def aside(self, log: str, position: int) -> bytes:
        """The record that an entry keeps aside."""
        request = ledger_pb2.GetEntryRequest(log=log, position=position)
        answer: ledger_pb2.GetEntryResponse = await self._ask(
            f"the ledger does not give {log} position {position}",
            self._ledger.GetEntry(request, timeout=self._wait_s, wait_for_ready=True),
        )
        return answer.aside


def _positions(sizes: Iterable[tuple[str, int]]) -> list[pricing_pb2.LogPosition]:
    return [pricing_pb2.LogPosition(log=log, size=size) for log, size in sizes]
