"""Holds by pricing's Reserve, Extend and Release.

A hold lives for HOLD_MS and is extended while its request runs, so that what a
dead process held is free again soon. After its event is written the hold is
left to itself: it has most of HOLD_MS to be charged in.

While pricing does not answer, the house's policy decides. `refuse`: nothing
starts. `lease`: an account that was granted a hold within LEASE_MS may start
requests without one; what they cost is charged when it comes, and may take the
account below its limit by as much.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final, Literal

import grpc
import grpc.aio
import structlog
from google.rpc import error_details_pb2

from inference.adapters.hold_asks import HoldAsks
from inference.app.credit import Request
from kernel import errors, grpcs
from kernel.clock import Clock, timestamp_of
from tollbook.pricing.v1 import holds_pb2 as holds

log = structlog.get_logger()

Policy = Literal["refuse", "lease"]
HOLD_MS: Final = 180_000
EXTEND_MS: Final = 45_000
CALL_TIMEOUT_MS: Final = 3_000
LEASE_MS: Final = 60_000
MAX_LEASES: Final = 10_000
_AT_ONCE: Final = 16
_AWAY: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


class PricingCredit:
    """Credit as pricing keeps it. Everything runs on one event loop."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock, policy: Policy) -> None:
        self._asks = HoldAsks(channel)
        self._clock = clock
        self._policy = policy
        self._open: dict[str, str] = {}
        self._granted_ms: OrderedDict[str, int] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    async def hold(self, request: Request) -> str:
        """See the port."""
        message = holds.ReserveRequest(
            account_id=request.account_id,
            project_id=request.project_id,
            key_id=request.key_id,
            event_id=request.event_id,
            bound=holds.UsageBound(
                served_model=request.served_model,
                base_model=request.base_model,
                adapter=request.adapter,
                service_tier=request.service_tier,
                input_tokens=request.input_tokens,
                max_output_tokens=request.max_output_tokens,
            ),
            ttl_ms=HOLD_MS,
            event_time=timestamp_of(request.event_time_us),
        )
        try:
            answer = await self._asks.reserve(message, CALL_TIMEOUT_MS)
        except grpc.aio.AioRpcError as error:
            return self._without(request, error)
        hold_id = answer.hold.hold_id
        self._open[hold_id] = request.account_id
        self._granted_ms[request.account_id] = self._clock.monotonic_ms()
        self._granted_ms.move_to_end(request.account_id)
        if len(self._granted_ms) > MAX_LEASES:
            self._granted_ms.popitem(last=False)
        return hold_id

    def settled(self, hold_id: str) -> None:
        """See the port."""
        self._open.pop(hold_id, None)

    def release(self, account_id: str, hold_id: str) -> None:
        """See the port. What cannot be given back now ends by itself."""
        if self._open.pop(hold_id, None) is not None:
            task = asyncio.create_task(self._release(account_id, hold_id), name="release hold")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ask no more."""
        await self._asks.close()

    async def keep_for_ever(self) -> None:
        """Extend the holds of what runs; run it as a task."""
        while True:
            await asyncio.sleep(EXTEND_MS / 1000)
            slots = asyncio.Semaphore(_AT_ONCE)
            await asyncio.gather(
                *(self._extend(slots, *item) for item in tuple(self._open.items()))
            )

    async def _extend(self, slots: asyncio.Semaphore, hold_id: str, account_id: str) -> None:
        request = holds.ExtendRequest(account_id=account_id, hold_id=hold_id, ttl_ms=HOLD_MS)
        async with slots:
            if hold_id not in self._open:
                return
            try:
                await self._asks.extend(request, CALL_TIMEOUT_MS)
            except grpc.aio.AioRpcError as error:
                log.warning("a hold was not extended", hold=hold_id, error=error.details())

    async def _release(self, account_id: str, hold_id: str) -> None:
        request = holds.ReleaseRequest(account_id=account_id, hold_id=hold_id)
        try:
            await self._asks.release(request, CALL_TIMEOUT_MS)
        except grpc.aio.AioRpcError as error:
            log.warning("a hold was not released", hold=hold_id, error=error.details())

    def _without(self, request: Request, error: grpc.aio.AioRpcError) -> str:
        """Go on without a hold if the policy says so; else raise what the caller is told."""
        said = error.details() or error.code().name
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._granted_ms.pop(request.account_id, None)
            raise _no_credit(said, error) from None
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            raise errors.AlreadyExists(
                f"request id {request.event_id!r} was used before and is charged; use a new id",
                reason="REQUEST_ID_REUSED",
            ) from None
        if error.code() not in _AWAY:
            raise errors.Internal(
                f"pricing refuses a hold: {said}", reason="HOLD_REFUSED"
            ) from None
        granted_ms = self._granted_ms.get(request.account_id)
        if (
            self._policy == "lease"
            and granted_ms is not None
            and self._clock.monotonic_ms() - granted_ms < LEASE_MS
        ):
            log.warning("pricing away: a request starts without a hold", account=request.account_id)
            return ""
        raise errors.Unavailable(
            "credit cannot be held now: pricing does not answer",
            reason="PRICING_UNAVAILABLE",
            metadata={"status": error.code().name},
            retry_after_ms=1_000,
        ) from error


def _no_credit(said: str, error: grpc.aio.AioRpcError) -> errors.QuotaExceeded:
    """Pricing's refusal, with the limits that it named."""
    info = grpcs.details_of(error, error_details_pb2.ErrorInfo)
    quota = grpcs.details_of(error, error_details_pb2.QuotaFailure)
    violations = () if quota is None else tuple(quota.violations)
    return errors.QuotaExceeded(
        said,
        reason="SPEND_LIMIT" if info is not None and info.reason == "SPEND_LIMIT" else "NO_CREDIT",
        violations=tuple(
            errors.QuotaViolation(limit.subject, limit.description) for limit in violations
        ),
    )
