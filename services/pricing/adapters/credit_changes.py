"""ControlService's part about credit: projects, terms, limits, refunds, transfers, top-ups.

Each change is one record of the control log under its own ids, as the others
are (changes.py). What depends on usage is asked before the record is made, for
the log's fold cannot ask it: what a charge was, and what an account has left.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, Final

import structlog
from google.protobuf.message import Message

from kernel import errors
from kernel.clock import Clock
from pricing.adapters import queries
from pricing.adapters.answers import PricingAnswers, Reader, no_account
from pricing.adapters.changes import ControlChanges, refuse
from pricing.adapters.control_view import ControlView
from pricing.adapters.hold_ops import Reserving
from pricing.adapters.holds import HoldDoor
from pricing.adapters.ledger_client import Ledger
from pricing.domain import credit
from pricing.domain.holds import Ask, hold_id_of
from pricing.domain.receipt import cost_since
from tollbook.pricing.v1 import accounts_pb2, control_pb2, pricing_pb2

log = structlog.get_logger()

_CHANGE: Final = "SELECT * FROM control_change WHERE kind = $1 AND change_id = $2"
CROSSED: Final = (
    "SELECT r.account_id, a.currency, r.amount_pico, r.crossings FROM top_up_rule r"
    " JOIN account a ON a.account_id = r.account_id"
    " LEFT JOIN balance b ON b.ledger_account = 'account:' || r.account_id"
    " AND b.currency = a.currency"
    " WHERE r.armed AND r.amount_pico IS NOT NULL"
    " AND coalesce(b.amount_pico, 0) < r.threshold_pico LIMIT 1000"
)
_CURRENCY: Final = "SELECT currency FROM account WHERE account_id = $1"
_TRANSFER_TTL_US: Final = 60_000_000
TEND_MS: Final = 500


class _OwnCall:
    """Stands where a call's context does, for a change that no caller asked for."""

    def time_remaining(self) -> None:
        """It has no deadline."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Who records it."""
        return (("tollbook-actor", "top-up rule"),)


class CreditChanges(ControlChanges):
    """Answers ControlService, credit included."""

    def __init__(
        self,
        reader: Reader,
        ledger: Ledger,
        view: ControlView,
        clock: Clock,
        answers: PricingAnswers,
        door: HoldDoor,
    ) -> None:
        super().__init__(reader, ledger, view, clock)
        self._answers = answers
        self._door = door

    async def CreateProject(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.CreateProjectRequest, context: Any
    ) -> pricing_pb2.CreateProjectResponse:
        """Create a project, or find the same one created before."""
        made = request.project
        refuse("project", credit.project_problem(made))
        position = await self._change(credit.PROJECT, made, context)
        return pricing_pb2.CreateProjectResponse(position=position)

    async def SetTerms(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.SetTermsRequest, context: Any
    ) -> pricing_pb2.SetTermsResponse:
        """Set how far an account may go below 0."""
        made = request.terms
        refuse("terms.credit_limit", credit.amount_problem("credit_limit", made.credit_limit, 0))
        position = await self._change(credit.TERMS, made, context)
        return pricing_pb2.SetTermsResponse(position=position)

    async def SetLimit(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.SetLimitRequest, context: Any
    ) -> pricing_pb2.SetLimitResponse:
        """Set, change or lift a limit of what is spent in a window."""
        made = request.limit
        refuse("limit", credit.limit_problem(made))
        position = await self._change(credit.LIMIT, made, context)
        return pricing_pb2.SetLimitResponse(position=position)

    async def RefundCharge(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.RefundChargeRequest, context: Any
    ) -> pricing_pb2.RefundChargeResponse:
        """Give back an event's charge, or a part of it, once."""
        made = request.refund
        refuse("refund", credit.refund_problem(made))
        await self._answers.catch_up()
        receipt = await self._answers.receipt(made.account_id, made.event_id)
        # A re-rating may have given back a part already.
        total_pico = int(cost_since(receipt).amount_pico or "0")
        if int(made.amount.amount_pico) > total_pico:
            raise errors.FailedPrecondition(
                f"event {made.event_id!r} costs {total_pico} pico, the refund is of"
                f" {made.amount.amount_pico}; refund no more than the charge",
                reason="REFUND_TOO_LARGE",
            )
        position = await self._change(credit.REFUND, made, context)
        return pricing_pb2.RefundChargeResponse(position=position)

    async def TransferCredit(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.TransferCreditRequest, context: Any
    ) -> pricing_pb2.TransferCreditResponse:
        """Move credit to another account: held first, so that it cannot be spent meanwhile."""
        made = request.transfer
        refuse("transfer", credit.transfer_problem(made))
        # One transfer, one hold: a repeat finds the same one.
        hold_id = hold_id_of(made.from_account_id, f"transfer:{made.transfer_id}")
        made.hold_id = hold_id
        older = await self._row(_CHANGE, credit.TRANSFER, credit.id_of(credit.TRANSFER, made))
        if older is None:
            if await self._row(_CURRENCY, made.to_account_id) is None:
                raise no_account(made.to_account_id)
            ask = Ask(
                hold_id,
                made.from_account_id,
                "",
                "",
                int(made.amount.amount_pico),
                self._clock.now_us(),
            )
            await self._door.reserve(Reserving(ask, made.amount.currency, _TRANSFER_TTL_US))
        try:
            position = await self._change(credit.TRANSFER, made, context)
        except (errors.AlreadyExists, errors.InvalidArgument):
            await self._door.release(made.from_account_id, hold_id)
            raise
        return pricing_pb2.TransferCreditResponse(position=position)

    async def SetTopUpRule(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.SetTopUpRuleRequest, context: Any
    ) -> pricing_pb2.SetTopUpRuleResponse:
        """Set when an account is topped up by itself."""
        made = request.rule
        refuse("rule", credit.rule_problem(made))
        position = await self._change(credit.RULE, made, context)
        return pricing_pb2.SetTopUpRuleResponse(position=position)

    async def TopUp(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.TopUpRequest, context: Any
    ) -> pricing_pb2.TopUpResponse:
        """Add credit that was paid for, once for each top_up_id."""
        made = request.top_up
        if made.crossing:
            refuse("top_up.crossing", "only the account's rule counts crossings; leave it 0")
        refuse("top_up", credit.top_up_problem(made))
        position = await self._change(credit.TOP_UP, made, context)
        return pricing_pb2.TopUpResponse(position=position)

    async def tend(self) -> None:
        """Top accounts up whose rule says so, for ever; run it as a task.

        Any number of servers may do so at once: a crossing has a number, and
        one record can stand under it.
        """
        while True:
            await asyncio.sleep(TEND_MS / 1000)
            try:
                for row in await self._reader.in_snapshot(lambda db: db.fetch(CROSSED)):
                    await self._fire(row)
            except (errors.Unavailable, errors.DeadlinePassed) as error:
                log.warning("top-ups wait", error=error.message)

    async def _fire(self, row: Any) -> None:
        crossing = row["crossings"] + 1
        made = accounts_pb2.CreditToppedUp(
            top_up_id=f"rule/{row['account_id']}/{crossing}",
            account_id=row["account_id"],
            amount=queries.amount(row["currency"], row["amount_pico"]),
            crossing=crossing,
        )
        try:
            await self._change(credit.TOP_UP, made, _OwnCall())
        except errors.AlreadyExists as error:
            # Another server was first, or the rule was changed meanwhile.
            log.info("not topped up", account_id=made.account_id, why=error.message)
        else:
            log.info("topped up", account_id=made.account_id, crossing=crossing)

    async def _change(self, kind: str, made: Message, context: Any) -> int:
        """Have a change applied once. Gives its position in the control log.

        Errors: NotFound (account), AlreadyExists (its ids stand for another
        change, or the log's rules refuse it).
        """
        account_id = credit.account_of(made)
        if await self._row(_CURRENCY, account_id) is None:
            raise no_account(account_id)
        ident = credit.id_of(kind, made)
        record = control_pb2.ControlRecord()
        getattr(record, kind).CopyFrom(made)
        row = await self._once(
            _key(kind, ident), record, context, lambda: self._row(_CHANGE, kind, ident)
        )
        if row["body"] != made.SerializeToString(deterministic=True):
            # A refund has no id but its event's.
            what = (
                "was refunded before, by another amount or for another reason: an event is"
                " refunded once"
                if kind == credit.REFUND
                else "stands for another change; use a new id"
            )
            raise errors.AlreadyExists(f"{ident!r} {what}", reason="CHANGE_EXISTS")
        position: int = row["control_position"]
        return position


def _key(kind: str, ident: str) -> str:
    """The idempotency key of a change, at most 128 characters."""
    key = f"{kind}:{ident}"
    return key if len(key) <= 128 else f"{kind}:{hashlib.sha256(ident.encode()).hexdigest()}"
