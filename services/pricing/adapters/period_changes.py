"""ControlService's part about periods: the records that end a month and close it for each account.

Every record is a function of the logs and stands under a key made of what it
says. So however often and from however many servers a month is closed, each
record is in the log once, and a closing that was broken off is gone on with by
the next call.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any, Final

import structlog

from kernel import errors
from kernel.clock import Clock
from kernel.placement import CONTROL_LOG
from pricing.adapters import expiry, queries, statements
from pricing.adapters.answers import PricingAnswers, Reader
from pricing.adapters.control_view import ControlView
from pricing.adapters.credit_changes import CreditChanges
from pricing.adapters.holds import HoldDoor
from pricing.adapters.ledger_client import Ledger
from pricing.adapters.rehearsal import usage_sizes
from pricing.domain import hours
from pricing.domain.closing import KIND
from pricing.domain.credit import EXPIRED
from pricing.domain.months import MONTH, month_of
from pricing.domain.period_ends import End
from pricing.domain.periods import terms_of
from tollbook.pricing.v1 import (
    accounts_pb2,
    commitment_pb2,
    control_pb2,
    pricing_pb2,
    statements_pb2,
)

log = structlog.get_logger()

_OPEN: Final = (
    "SELECT a.account_id, a.currency FROM account a WHERE a.control_position < $1"
    " AND a.account_id > $2 AND NOT EXISTS (SELECT FROM control_change c"
    "   WHERE c.kind = $3 AND c.change_id = a.account_id || '/' || $4)"
    " ORDER BY a.account_id LIMIT $5"
)
_CLOSED: Final = (
    "SELECT count(*) FROM control_change c JOIN account a"
    " ON c.change_id = a.account_id || '/' || $2 WHERE c.kind = $1"
)
_PAGE: Final = 200
_AT_ONCE: Final = 4
_LISTED: Final = 1_000
_WAIT_S: Final = 10.0
_WHOLE_S: Final = 60.0
_LOOK_S: Final = 0.25


class PeriodChanges(CreditChanges):
    """Answers ControlService, periods included."""

    def __init__(
        self,
        reader: Reader,
        ledger: Ledger,
        view: ControlView,
        clock: Clock,
        answers: PricingAnswers,
        door: HoldDoor,
    ) -> None:
        super().__init__(reader, ledger, view, clock, answers, door)
        self._view = view

    async def ClosePeriod(  # noqa: N802 - the contract's name
        self, request: statements_pb2.ClosePeriodRequest, context: Any
    ) -> statements_pb2.ClosePeriodResponse:
        """Close a month for every account that can be closed before the call's deadline."""
        remaining_s = context.time_remaining()
        limit_s = _WHOLE_S if remaining_s is None else min(_WHOLE_S, remaining_s)
        until_s = time.monotonic() + limit_s * 0.8
        end = await self._end(request.period, context)
        while True:
            began_s = time.monotonic()
            waiting = await self._close(end, context)
            left_s = until_s - time.monotonic()
            if not waiting or left_s <= 0:
                break
            # Each look reads all that waits: at most half of the time is spent looking, however
            # often the projector commits.
            await asyncio.sleep(min(time.monotonic() - began_s, left_s))
            # Nothing more can be closed before the projector has more.
            await self._reader.progress.next_commit(
                min(_LOOK_S, max(0.0, until_s - time.monotonic()))
            )
        closed = await self._row(_CLOSED, KIND, request.period)
        return statements_pb2.ClosePeriodResponse(
            end_position=end.position,
            closed=closed[0],
            open=[
                statements_pb2.OpenAccount(account_id=account_id, why=why)
                for account_id, why in waiting[:_LISTED]
            ],
            open_accounts=len(waiting),
        )

    async def _end(self, period: str, context: Any) -> End:
        """The end of a period, recorded now if it was not: after what belongs before it."""
        if not MONTH.fullmatch(period) or month_of(self._clock.now_us()) <= period:
            raise errors.FailedPrecondition(
                f"{period!r} is no month that is over by UTC", reason="PERIOD_NOT_OVER"
            )
        await self._known(await self._ledger.size(CONTROL_LOG))
        end = self._view.projection.control.ends.of(period)
        if end is not None:
            return end
        await self._expire(period, context)
        await self._close_commitments(period, context)
        record = control_pb2.ControlRecord(period_ended=accounts_pb2.PeriodEnded(period=period))
        position = await self._append(f"period-end:{period}", record, context)
        await self._known(position + 1)
        end = self._view.projection.control.ends.of(period)
        if end is None:
            why = self._view.why_ignored(position) or "another change stands under its key"
            raise errors.FailedPrecondition(
                f"period {period} cannot be ended: {why}", reason="PERIOD_NOT_ENDED"
            )
        return end

    async def _known(self, control_size: int) -> None:
        await self._reader.wait_for_control(control_size, _WAIT_S)
        await self._view.reach(control_size, _WAIT_S)

    async def _expire(self, period: str, context: Any) -> None:
        """Record what is left of every grant that ended by the end of a month.

        Only once all is charged that stands in the logs now: a projector that is behind, such as
        one that rebuilds, would void credit that usage has paid with.
        """
        if not await self._reader.in_snapshot(lambda db: expiry.any_due(db, period)):
            return
        await self._reader.wait_for(
            [
                pricing_pb2.LogPosition(log=name, size=size)
                for name, size in (await usage_sizes(self._ledger)).items()
            ],
            context.time_remaining() or _WHOLE_S,
        )
        for made in await self._reader.in_snapshot(lambda db: expiry.due(db, period)):
            try:
                await self._change(EXPIRED, made, context)
            except errors.AlreadyExists as error:
                # Another server was first, by what it knew then.
                log.info("not expired", grant_id=made.grant_id, why=error.message)

    async def _close_commitments(self, period: str, context: Any) -> None:
        """Record that a month is over for every card that commits to a least sum in it."""
        state = self._view.projection.control
        entries = state.entries(state.size)
        for card_id in sorted({known.card.card_id for known in entries}):
            terms = terms_of(entries, card_id, period)
            if terms is None or state.periods.is_closed(card_id, period):
                continue
            now = hours.local_time(terms.card.timezone, self._clock.now_us()).period
            if now <= period:
                raise errors.FailedPrecondition(
                    f"month {period} is not over in {terms.card.timezone}, which card"
                    f" {card_id!r} goes by; close it later",
                    reason="PERIOD_NOT_OVER",
                )
            made = commitment_pb2.CommitmentClosed(card_id=card_id, period=period)
            record = control_pb2.ControlRecord(commitment_closed=made)
            await self._append(f"commitment:{card_id}:{period}", record, context)

    async def _close(self, end: End, context: Any) -> list[tuple[str, str]]:
        """Close the period for every account that can be; the others, and what they wait for."""
        waiting: list[tuple[str, str]] = []
        after = ""
        while True:
            page = await self._open_accounts(end, after)
            appended: dict[str, int] = {}
            for at in range(0, len(page), _AT_ONCE):
                some = page[at : at + _AT_ONCE]
                answers = await asyncio.gather(
                    *(self._close_account(account, end, context) for account in some)
                )
                for (account_id, _), found in zip(some, answers, strict=True):
                    if isinstance(found, str):
                        waiting.append((account_id, found))
                    else:
                        appended[account_id] = found
            if appended:
                await self._known(max(appended.values()) + 1)
            for account_id, position in appended.items():
                why = await self._why_ignored(position)
                if why is not None:
                    waiting.append((account_id, why))
            if len(page) < _PAGE:
                return waiting
            after = page[-1][0]

    async def _open_accounts(self, end: End, after: str) -> list[tuple[str, str]]:
        """(account_id, currency) of the next accounts whose period is not closed."""
        rows = await self._reader.in_snapshot(
            lambda db: db.fetch(_OPEN, end.position, after, KIND, end.period, _PAGE)
        )
        return [(row["account_id"], row["currency"]) for row in rows]

    async def _why_ignored(self, position: int) -> str | None:
        why: str | None = await self._reader.in_snapshot(
            lambda db: queries.ignored_why(db, CONTROL_LOG, position)
        )
        return why

    async def _close_account(self, account: tuple[str, str], end: End, context: Any) -> int | str:
        """Append an account's closing. Gives its position, or what is in the way."""
        account_id, _ = account

        async def read(db: Any) -> tuple[list[statements.Record], statements.Stated]:
            made = await statements.records(db, account_id)
            return made, await statements.make(db, self._view, account, end, made)

        made, stated = await self._reader.in_snapshot(read)
        if made and made[-1].made.period >= end.period:
            return f"period {made[-1].made.period} is closed: {end.period} can no longer be"
        if stated.statement is None:
            return str(stated.waits_for)
        closing = stated.statement.record()
        body = closing.SerializeToString(deterministic=True)
        key = f"period:{end.period}:{hashlib.sha256(body).hexdigest()}"
        record = control_pb2.ControlRecord(period_closed=closing)
        return await self._append(key, record, context)
