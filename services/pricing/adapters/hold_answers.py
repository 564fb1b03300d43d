"""PricingService's part about holds: quotes, and holds from Reserve to their end."""

from __future__ import annotations

import re
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from kernel import errors
from kernel.clock import Clock, timestamp_of, us_of
from pricing.adapters import hold_sql, queries
from pricing.adapters.answers import PricingAnswers, Reader, no_account
from pricing.adapters.control_view import ControlView
from pricing.adapters.hold_ops import Made, Reserving
from pricing.adapters.hold_stream import Streams
from pricing.adapters.holds import HoldDoor
from pricing.adapters.ledger_client import Ledger
from pricing.domain import quoting
from pricing.domain.dimensions import STANDARD_TIER, Context
from pricing.domain.holds import DEFAULT_TTL_MS, MAX_HOLD_PICO, Ask, hold_id_of
from pricing.domain.state import Account
from tollbook.pricing.v1 import holds_pb2, money_pb2

_DEFAULT_PAGE: Final = 100
_AMOUNT: Final = re.compile(r"0|[1-9][0-9]{0,30}")
# How far an event's own time may be from now: a caller must not choose another window.
_FARTHEST_US: Final = 15 * 60 * 1_000_000


class HoldAnswers(PricingAnswers):
    """Answers PricingService, holds included."""

    def __init__(
        self, reader: Reader, ledger: Ledger, view: ControlView, door: HoldDoor, clock: Clock
    ) -> None:
        super().__init__(reader, ledger, view)
        self._door = door
        self._clock = clock
        self.streams = Streams(
            {"reserve": self.Reserve, "extend": self.Extend, "release": self.Release}
        )

    # The types made from the contract know only methods that yield.
    async def AskHolds(  # type: ignore[override]  # noqa: N802 - the contract's name
        self, requests: Any, context: Any
    ) -> None:
        """Answer the asks of a stream."""
        await self.streams.serve(context)

    async def Quote(  # noqa: N802 - the contract's name
        self, request: holds_pb2.QuoteRequest, context: Any
    ) -> holds_pb2.QuoteResponse:
        """Answer with the most that a request can cost."""
        account = self._account(request.account_id)
        found = self._quote(request.bound, account, self._clock.now_us())
        if found.unpriced:
            raise errors.FailedPrecondition(
                f"no card in force prices {request.bound.served_model!r} in {account.currency}",
                reason="NO_PRICE",
                metadata={"model": request.bound.served_model},
            )
        return holds_pb2.QuoteResponse(
            amount=queries.amount(account.currency, found.amount_pico),
            control_size=self._view.projection.control.size,
        )

    async def Reserve(  # noqa: N802 - the contract's name
        self, request: holds_pb2.ReserveRequest, context: Any
    ) -> holds_pb2.ReserveResponse:
        """Make a hold, or find the one made before for the same event."""
        now_us = self._clock.now_us()
        event_time_us = _event_time_us(request.event_time, request.HasField("event_time"), now_us)
        unpriced = False
        if request.WhichOneof("size") == "amount":
            amount_pico, currency = _amount_of(request.amount), request.amount.currency
        else:
            account = self._account(request.account_id)
            found = self._quote(request.bound, account, event_time_us)
            amount_pico, currency = found.amount_pico, account.currency
            unpriced = found.unpriced
            if unpriced:
                # Nobody knows what it costs, so it is no route past the credit: an account with
                # nothing left starts no such request either.
                amount_pico = max(amount_pico, 1)
            if amount_pico > MAX_HOLD_PICO:
                raise errors.InvalidArgument(
                    "the request could cost more than any hold keeps", reason="TOO_LARGE"
                )
        ask = Ask(
            hold_id_of(request.account_id, request.event_id),
            request.account_id,
            request.project_id,
            request.key_id,
            amount_pico,
            event_time_us,
        )
        made = await self._door.reserve(Reserving(ask, currency, _ttl_us(request.ttl_ms)))
        return holds_pb2.ReserveResponse(
            hold=_hold(made.hold, made.currency),
            spendable=queries.amount(made.currency, made.spendable_pico),
            unpriced=unpriced,
        )

    async def Extend(  # noqa: N802 - the contract's name
        self, request: holds_pb2.ExtendRequest, context: Any
    ) -> holds_pb2.ExtendResponse:
        """Give a hold more time or a larger amount."""
        amount_pico = _amount_of(request.amount) if request.HasField("amount") else 0
        # Its event's instant is in the hold's row; as a rule it is of the windows of now.
        now_us = self._clock.now_us()
        ask = Ask(request.hold_id, request.account_id, "", "", amount_pico, now_us)
        made: Made = await self._door.reserve(
            Reserving(ask, request.amount.currency, _ttl_us(request.ttl_ms), grows=True)
        )
        return holds_pb2.ExtendResponse(hold=_hold(made.hold, made.currency))

    async def Release(  # noqa: N802 - the contract's name
        self, request: holds_pb2.ReleaseRequest, context: Any
    ) -> holds_pb2.ReleaseResponse:
        """Give a hold up."""
        released = await self._door.release(request.account_id, request.hold_id)
        return holds_pb2.ReleaseResponse(released=released)

    async def ListHolds(  # noqa: N802 - the contract's name
        self, request: holds_pb2.ListHoldsRequest, context: Any
    ) -> holds_pb2.ListHoldsResponse:
        """Answer with an account's open holds."""
        size = request.page_size or _DEFAULT_PAGE

        async def read(db: Any) -> Any:
            currency = await db.fetchval(
                "SELECT currency FROM account WHERE account_id = $1", request.account_id
            )
            if currency is None:
                return None
            return currency, await hold_sql.open_holds(db, request.account_id, size)

        found = await self._reader.in_snapshot(read)
        if found is None:
            raise no_account(request.account_id)
        currency, (holds, held_pico, count) = found
        return holds_pb2.ListHoldsResponse(
            holds=[_hold(hold, currency) for hold in holds],
            held=queries.amount(currency, held_pico),
            open_holds=count,
        )

    def _account(self, account_id: str) -> Account:
        account = self._view.projection.control.accounts.get(account_id)
        if account is None:
            raise no_account(account_id)
        return account

    def _quote(
        self, bound: holds_pb2.UsageBound, account: Account, event_time_us: int
    ) -> quoting.Quote:
        if bound.HasField("event_time"):
            event_time_us = us_of(bound.event_time)
        control = self._view.projection.control
        context = Context(
            bound.served_model,
            bound.base_model or bound.served_model,
            bound.adapter,
            bound.service_tier or STANDARD_TIER,
            bound.region,
        )
        return quoting.quote(
            quoting.Bound(context, bound.input_tokens, bound.max_output_tokens, event_time_us),
            account.account_id,
            account.currency,
            control.catalogue(control.size),
        )


def _ttl_us(ttl_ms: int) -> int:
    return (ttl_ms or DEFAULT_TTL_MS) * 1_000


def _event_time_us(given: Timestamp, is_given: bool, now_us: int) -> int:
    if not is_given:
        return now_us
    at_us = us_of(given)
    if abs(at_us - now_us) > _FARTHEST_US:
        raise errors.InvalidArgument.of_field(
            "event_time",
            "give the time of the request",
            "event_time is more than 15 minutes from now",
        )
    return at_us


def _amount_of(amount: money_pb2.Amount) -> int:
    if not _AMOUNT.fullmatch(amount.amount_pico) or int(amount.amount_pico) > MAX_HOLD_PICO:
        raise errors.InvalidArgument.of_field(
            "amount.amount_pico",
            "0 to 10^30",
            "a hold's amount is 0 to 10^18 units of the currency, in pico-units",
        )
    return int(amount.amount_pico)


def _hold(hold: hold_sql.Open, currency: str) -> holds_pb2.Hold:
    return holds_pb2.Hold(
        hold_id=hold.hold_id,
        account_id=hold.account_id,
        project_id=hold.project_id,
        key_id=hold.key_id,
        amount=queries.amount(currency, hold.amount_pico),
        expires_time=timestamp_of(hold.expires_us),
        event_time=timestamp_of(hold.event_time_us),
    )
