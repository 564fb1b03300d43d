"""When periods end: the control records by which every reader knows what a period's invoice is of.

An end cuts all that is ever charged in two: what was known when it was
recorded, and what came to be known later. Usage was known by its pin, and what
a control record charges by that record. So which side a charge is on does not
depend on how the logs are read. The number of ends before it is its *era*.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Final, NamedTuple

from kernel.money import PICO
from kernel.placement import partition_of_log
from pricing.domain import books
from pricing.domain.months import MONTH, month_of
from pricing.domain.state import Account
from tollbook.pricing.v1 import accounts_pb2 as accounts

_AMOUNT: Final = re.compile(r"0|-?[1-9][0-9]{0,38}")
_LARGEST_PICO: Final = 10**36
_MAX_LOGS: Final = 64


class End(NamedTuple):
    """The end of a period, and how many periods ended before it."""

    position: int
    period: str
    era: int


class PeriodEnds:
    """The ends of periods at a size of the control log, in order."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self._positions: list[int] = []

    def end(self, position: int, made: accounts.PeriodEnded, recorded_ms: int) -> str | None:
        """Apply an end; give why it is refused, or None."""
        if not MONTH.fullmatch(made.period):
            return 'a period is a month such as "2026-01"'
        if self.ends and made.period <= self.ends[-1].period:
            return f"period {self.ends[-1].period} has ended: {made.period} is not after it"
        if month_of(recorded_ms * 1000) <= made.period:
            return f"period {made.period} is not over"
        self.ends.append(End(position, made.period, len(self.ends)))
        self._positions.append(position)
        return None

    def of(self, period: str) -> End | None:
        """The end of a period, or None."""
        return next((end for end in self.ends if end.period == period), None)

    def era_of(self, control_size: int) -> int:
        """How many ends are known at a control size."""
        return bisect_left(self._positions, control_size)

    def close_problem(self, made: accounts.PeriodClosed, account: Account | None) -> str | None:
        """Why a closing is refused, as far as the control log alone can say; or None."""
        name = f"period {made.period[:10]!r} of account {made.account_id[:70]!r}"
        if account is None:
            return f"{name}: there is no such account"
        end = self.of(made.period)
        if end is None or end.position != made.end_position:
            return f"{name}: no record at {made.end_position} says that the period ended"
        if made.time_zone not in ("", "UTC"):
            return f"{name}: periods are months by UTC"
        if len(made.statement_hash) != 32:
            return f"{name}: statement_hash is a SHA-256, 32 bytes"
        amounts = made.charged, made.corrected, made.invoiced
        if any(amount.currency != account.currency for amount in amounts):
            return f"{name}: its amounts are not in the account's {account.currency}"
        if not all(_AMOUNT.fullmatch(amount.amount_pico) for amount in amounts):
            return f"{name}: its amounts are whole pico-units"
        charged, corrected, invoiced = (int(amount.amount_pico) for amount in amounts)
        if max(map(abs, (charged, corrected, invoiced))) > _LARGEST_PICO:
            return f"{name}: its amounts are out of bounds"
        if abs(invoiced - charged - corrected) > books.LARGEST_ROUNDING_PICO:
            return f"{name}: what is invoiced is its exact amount, rounded"
        if len(made.logs) > _MAX_LOGS or list(made.logs) != sorted(set(made.logs)):
            return f"{name}: it names its logs once each and in order, {_MAX_LOGS} at the most"
        if any(partition_of_log(log) is None for log in made.logs):
            return f"{name}: it names a log that is no usage log"
        return None


# ISO 4217's currencies that have not two decimals.
_DECIMALS: Final = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG"), 0),
    **dict.fromkeys(("RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}


def smallest_pico(currency: str) -> int:
    """A currency's smallest unit, in pico-units."""
    smallest: int = PICO // 10 ** _DECIMALS.get(currency, 2)
    return smallest


def invoiced_pico(exact_pico: int, currency: str) -> int:
    """The one rounding there is: to the currency's smallest unit, halves to the even one."""
    unit = smallest_pico(currency)
    whole, rest = divmod(exact_pico, unit)
    if 2 * rest > unit or (2 * rest == unit and whole % 2):
        whole += 1
    return whole * unit
