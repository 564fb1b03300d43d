"""What is asked of the holds' door, and how it answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from kernel import errors
from kernel.placement import partition_of
from pricing.adapters.hold_sql import SHARDS, Open
from pricing.domain.holds import Ask, Standing


class Made(NamedTuple):
    """An answer: the hold, and what is left for its project after it."""

    hold: Open
    spendable_pico: int
    currency: str


@dataclass(eq=False, slots=True)
class Reserving:
    """A hold that is asked for, of `ask.amount_pico`; `grows`: one that has it from now on.

    Of one that grows the project, key and instant are those of the open hold; its
    `ask.event_time_us` is a guess at which windows they fall in.
    """

    ask: Ask
    currency: str
    ttl_us: int
    grows: bool = False
    answer: asyncio.Future[Made] = field(default_factory=asyncio.Future)
    is_done: bool = False
    """The door has nothing more to do for it."""

    @property
    def hold_id(self) -> str:
        """The hold that it is about."""
        return self.ask.hold_id

    @property
    def shard(self) -> int:
        """The account's shard."""
        return partition_of(self.ask.account_id, SHARDS)


@dataclass(eq=False, slots=True)
class Releasing:
    """A hold that is given up."""

    account_id: str
    hold_id: str
    answer: asyncio.Future[bool] = field(default_factory=asyncio.Future)
    is_done: bool = False
    """The door has nothing more to do for it."""

    @property
    def shard(self) -> int:
        """The account's shard."""
        return partition_of(self.account_id, SHARDS)


Op = Reserving | Releasing
Answer = Made | bool | errors.TollbookError


def tell(op: Op, answer: Answer) -> None:
    """Answer an ask, if its caller still waits."""
    if op.answer.done():
        return
    future = cast("asyncio.Future[Made | bool]", op.answer)
    if isinstance(answer, errors.TollbookError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def refused(standing: Standing, ask: Ask, more_pico: int) -> errors.QuotaExceeded | None:
    """The error if limits are in the way; else the hold is counted."""
    refusals = standing.refusals(ask, more_pico)
    if not refusals:
        standing.hold(ask, more_pico)
        return None
    return errors.QuotaExceeded(
        "; ".join(refusal.description for refusal in refusals),
        reason="NO_CREDIT" if refusals[0].subject.startswith("account:") else "SPEND_LIMIT",
        metadata={"account_id": ask.account_id},
        violations=tuple(
            errors.QuotaViolation(refusal.subject, refusal.description) for refusal in refusals
        ),
    )


def gone(ask: Ask) -> errors.NotFound:
    """There is no such hold, or its event is being charged."""
    return errors.NotFound(
        f"account {ask.account_id!r} has no open hold {ask.hold_id!r}", reason="HOLD_NOT_FOUND"
    )


def no_account(account_id: str) -> errors.NotFound:
    """There is no such account."""
    return errors.NotFound(
        f"there is no account {account_id!r}",
        reason="ACCOUNT_NOT_FOUND",
        metadata={"account_id": account_id},
    )


def other_currency(account_id: str, own: str, asked: str) -> errors.InvalidArgument:
    """The account is in another currency."""
    return errors.InvalidArgument(
        f"account {account_id!r} is in {own}, not in {asked}",
        reason="CURRENCY_MISMATCH",
        violations=(errors.FieldViolation("amount.currency", f"use {own}"),),
    )


def charged() -> errors.FailedPrecondition:
    """The event has been charged, so that it needs no hold."""
    return errors.FailedPrecondition(
        "the event is charged already; use a new event_id", reason="EVENT_CHARGED"
    )
