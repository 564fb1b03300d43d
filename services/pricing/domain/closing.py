"""Closing periods: what a record says is held against what the logs give, by every reader alike.

A closing is judged when each log it names has an entry that was pinned beyond
the period's end, for from then on nothing can come that the end had not left
out. So the verdict depends on the logs and on no reader's pace. An account's
closings are judged in the order of the control log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from pricing.domain import books
from pricing.domain.billing import Bills
from pricing.domain.period_ends import End
from pricing.domain.state import Account, Change, Effects, Ignored
from pricing.domain.statement import Closed, Entries, Statement, difference, state
from tollbook.pricing.v1 import accounts_pb2 as accounts

KIND: Final = "period_closed"


def change_id(made: accounts.PeriodClosed) -> str:
    """What a closing is found by: an account's period is closed once."""
    return f"{made.account_id}/{made.period}"


class Passed:
    """Where in each log the entries begin that were pinned beyond the ends of periods."""

    def __init__(self) -> None:
        self._eras: dict[str, list[tuple[int, int]]] = {}
        """(era, first position), in order; of era 0 nothing is kept."""

    def add(self, log: str, era: int, first_position: int) -> bool:
        """Note a run by the era of its pin; tell whether it is the first of it in its log."""
        eras = self._eras.setdefault(log, [])
        if era <= (eras[-1][0] if eras else 0):
            return False
        eras.append((era, first_position))
        return True

    def is_beyond(self, log: str, end: End) -> bool:
        """Tell whether a log has an entry that was pinned beyond the end of a period."""
        return any(era > end.era for era, _ in self._eras.get(log, ()))

    def first_beyond(self, log: str, end: End) -> int:
        """The first such entry; there is one."""
        return next(first for era, first in self._eras[log] if era > end.era)

    def entries(self, logs: Iterable[str], end: End, before: Closed | None) -> list[Entries]:
        """What of each log a period's statement is of; all are beyond its end."""
        return [
            Entries(
                log,
                self.first_beyond(log, before.end)
                if before is not None and log in before.logs
                else 0,
                self.first_beyond(log, end),
            )
            for log in logs
        ]


class Closings:
    """The closed periods of every account, and the closings that wait for a verdict."""

    def __init__(self, bills: Bills, account_of: Callable[[str], Account | None]) -> None:
        self.closed: dict[str, list[Closed]] = {}
        self.passed = Passed()
        self._bills = bills
        self._account_of = account_of
        self._waiting: dict[str, deque[tuple[int, accounts.PeriodClosed]]] = {}

    def waits(self, account_id: str) -> bool:
        """Tell whether a closing of the account has no verdict yet."""
        return account_id in self._waiting

    def add(self, position: int, made: accounts.PeriodClosed) -> None:
        """Take in a closing that the control log alone has nothing against."""
        self._waiting.setdefault(made.account_id, deque()).append((position, made))

    def judge(self, effects: Effects, account_ids: Iterable[str] | None = None) -> None:
        """Judge every closing of these accounts that can be; a step's effects take what follows.

        None: of all that wait.
        """
        for account_id in list(self._waiting if account_ids is None else account_ids):
            queue = self._waiting.get(account_id, deque())
            while queue and self._can_judge(queue[0][1]):
                position, made = queue.popleft()
                why = self._judge(position, made, effects)
                if why is not None:
                    effects.ignored.append(Ignored(books.CONTROL, position, why))
            if not queue:
                self._waiting.pop(account_id, None)

    def _can_judge(self, made: accounts.PeriodClosed) -> bool:
        end = self._bills.ends.of(made.period)
        return end is not None and all(self.passed.is_beyond(log, end) for log in made.logs)

    def _judge(self, position: int, made: accounts.PeriodClosed, effects: Effects) -> str | None:
        name = f"period {made.period!r} of account {made.account_id!r}"
        account = self._account_of(made.account_id)
        end = self._bills.ends.of(made.period)
        if account is None or end is None:
            raise AssertionError("a closing that the control log refuses was taken in")
        closed = self.closed.setdefault(made.account_id, [])
        before = closed[-1] if closed else None
        if before is not None and before.end.period >= made.period:
            return f"{name}: period {before.end.period} is closed"
        if before is not None and not set(before.logs) <= set(made.logs):
            return f"{name}: it leaves out a log that an earlier closing names"
        whose = account.account_id, account.currency
        entries = self.passed.entries(made.logs, end, before)
        stated = state(self._bills, whose, end, entries, before)
        problem = difference(stated, made)
        if problem is not None:
            return f"{name}: {problem}"
        closed.append(Closed(position, end, stated.logs, stated.closing_pico, made.statement_hash))
        _round(position, stated, effects)
        effects.changes.append(
            Change(
                KIND,
                change_id(made),
                made.account_id,
                position,
                made.SerializeToString(deterministic=True),
            )
        )
        return None


def _round(position: int, stated: Statement, effects: Effects) -> None:
    """Post what rounding adds to an invoice, or takes from it."""
    residual = stated.rounding_pico
    if not residual:
        return
    customer, rounding = books.customer(stated.account_id), books.rounding(stated.account_id)
    giver, getter = (customer, rounding) if residual > 0 else (rounding, customer)
    effects.postings.append(
        books.Posting(
            books.ROUNDING,
            giver,
            getter,
            stated.currency,
            abs(residual),
            books.CONTROL,
            position,
            position + 1,
            period=stated.end.period,
        )
    )
