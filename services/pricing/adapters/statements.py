"""Statements from the projection's tables: the same fold's sums, for one account at a time."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from kernel import errors
from pricing.adapters import bill_store
from pricing.adapters.control_view import ControlView
from pricing.domain.closing import KIND, Passed
from pricing.domain.period_ends import End
from pricing.domain.statement import Closed, Statement, state
from tollbook.pricing.v1 import accounts_pb2, statements_pb2

_CLOSED: Final = (
    "SELECT control_position, body FROM control_change WHERE account_id = $1 AND kind = $2"
    " ORDER BY control_position"
)


class Record(NamedTuple):
    """A record that closed a period, and its place in the control log."""

    position: int
    made: accounts_pb2.PeriodClosed


class Stated(NamedTuple):
    """A statement, or what it cannot be made for yet."""

    statement: Statement | None
    waits_for: str


async def records(db: Any, account_id: str) -> list[Record]:
    """The records that closed an account's periods, in order."""
    return [
        Record(row["control_position"], accounts_pb2.PeriodClosed.FromString(row["body"]))
        for row in await db.fetch(_CLOSED, account_id, KIND)
    ]


def summary(record: Record) -> statements_pb2.StatementSummary:
    """A closed period as the contract writes it."""
    made = record.made
    return statements_pb2.StatementSummary(
        account_id=made.account_id,
        period=made.period,
        position=record.position,
        end_position=made.end_position,
        charged=made.charged,
        corrected=made.corrected,
        invoiced=made.invoiced,
        statement_hash=made.statement_hash,
    )


async def make(
    db: Any, view: ControlView, account: tuple[str, str], end: End, made: list[Record]
) -> Stated:
    """State an account's period at its end, after the periods that `made` closed before it.

    In one snapshot. The view has applied the control log at least up to the end.
    """
    account_id, _ = account
    projection = view.projection
    bills = projection.bills.alone(account_id)
    await bill_store.put_account(db, account_id, bills.put)
    passed = Passed()
    for log, era, first_position in await bill_store.eras(db):
        passed.add(log, era, first_position)
    earlier = [record for record in made if record.made.period < end.period]
    before = _closed(earlier, view, bills.credits.get(account_id, ()))
    logs = sorted({*bills.logs_of(account_id), *(before.logs if before is not None else ())})
    own = next((record for record in made if record.made.period == end.period), None)
    if own is not None:
        logs = list(own.made.logs)
    behind = [log for log in logs if not passed.is_beyond(log, end)]
    if behind:
        return Stated(None, f"an entry of {behind[0]} that comes after the period's end")
    return Stated(state(bills, account, end, passed.entries(logs, end, before), before), "")


def _closed(made: list[Record], view: ControlView, credit: Any) -> Closed | None:
    """The last of closed periods, with what it left: all credit until then, less all invoices."""
    if not made:
        return None
    last = made[-1]
    end = view.projection.control.ends.of(last.made.period)
    if end is None:
        raise errors.Unavailable("the control log is not known that far", reason="CONTROL_BEHIND")
    given = sum(one.amount_pico for one in credit if one.position < end.position)
    invoiced = sum(int(record.made.invoiced.amount_pico) for record in made)
    return Closed(
        last.position, end, tuple(last.made.logs), given - invoiced, last.made.statement_hash
    )
