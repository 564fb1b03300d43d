"""The statement of an account's period: what it was charged, line by line, and where that is from.

A pure function of the logs: of the end of the period, and of the logs that the
account's usage stands in. Its canonical form is one line of JSON (UTF-8, keys
in order of code points, no spaces, no character escaped that need not be), in
which money and 64-bit numbers are decimal strings. Its SHA-256 stands in the
control record that closes the period.

    opening + credits - charged - corrected - rounding = closing
    charged + corrected + rounding = invoiced

`charged` is of the period's own events. `corrected` is what came to earlier
periods after they were closed, and all of what was never billed before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from pricing.domain.billing import Bills, Credit, Extent, Line, LineKey, total_pico
from pricing.domain.period_ends import End, invoiced_pico
from tollbook.pricing.v1 import accounts_pb2 as accounts
from tollbook.pricing.v1 import money_pb2 as money

FORMAT: Final = "tollbook-statement-v1"


class Closed(NamedTuple):
    """A period of an account that is closed."""

    position: int
    """Of the record that closed it."""
    end: End
    logs: tuple[str, ...]
    closing_pico: int
    statement_hash: bytes

    @property
    def extent(self) -> Extent:
        """What had been billed when it was closed."""
        return Extent(frozenset(self.logs), self.end.era)


class Entries(NamedTuple):
    """Of a log, what a statement is of: entries whose pins are beyond the end of the period that
    was closed before, up to the first beyond its own.
    """

    log: str
    first: int
    end: int


class Statement(NamedTuple):
    """A period of an account, stated. Amounts in pico-units."""

    account_id: str
    currency: str
    end: End
    entries: tuple[Entries, ...]
    opening_pico: int
    credits: tuple[Credit, ...]
    lines: tuple[tuple[LineKey, Line], ...]
    charged_pico: int
    corrected_pico: int
    invoiced_pico: int

    @property
    def exact_pico(self) -> int:
        """What is billed, before it is rounded."""
        return self.charged_pico + self.corrected_pico

    @property
    def rounding_pico(self) -> int:
        """What rounding adds to the invoice."""
        return self.invoiced_pico - self.exact_pico

    @property
    def closing_pico(self) -> int:
        """What is left of all credit so far, after all invoices so far."""
        return self.opening_pico + sum(one.amount_pico for one in self.credits) - self.invoiced_pico

    def document(self) -> bytes:
        """The canonical form."""
        lines = [
            {
                "month": key.month,
                "kind": key.kind,
                "card_id": key.card_id,
                "card_version": str(key.version),
                "card_hash": key.content_hash.hex(),
                "line_id": key.line_id,
                "rule": key.rule,
                "units": str(line.units),
                "amount_pico": str(line.amount_pico),
            }
            for key, line in self.lines
        ]
        changes = [
            {
                "position": str(one.position),
                "kind": one.kind,
                "from": one.other,
                "amount_pico": str(one.amount_pico),
            }
            for one in self.credits
        ]
        made: dict[str, Any] = {
            "format": FORMAT,
            "account_id": self.account_id,
            "currency": self.currency,
            "period": self.end.period,
            "time_zone": "UTC",
            "end_position": str(self.end.position),
            "entries": [
                {"log": part.log, "from_position": str(part.first), "to_position": str(part.end)}
                for part in self.entries
            ],
            "opening_pico": str(self.opening_pico),
            "credits": changes,
            "lines": lines,
            "charged_pico": str(self.charged_pico),
            "corrected_pico": str(self.corrected_pico),
            "rounding_pico": str(self.rounding_pico),
            "invoiced_pico": str(self.invoiced_pico),
            "closing_pico": str(self.closing_pico),
        }
        text = json.dumps(made, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return text.encode()

    def digest(self) -> bytes:
        """SHA-256 of the canonical form."""
        return hashlib.sha256(self.document()).digest()

    def record(self) -> accounts.PeriodClosed:
        """The control record that closes the period with this statement."""

        def amount(pico: int) -> money.Amount:
            return money.Amount(currency=self.currency, amount_pico=str(pico))

        return accounts.PeriodClosed(
            account_id=self.account_id,
            period=self.end.period,
            charged=amount(self.charged_pico),
            corrected=amount(self.corrected_pico),
            invoiced=amount(self.invoiced_pico),
            statement_hash=self.digest(),
            end_position=self.end.position,
            logs=self.logs,
        )

    @property
    def logs(self) -> tuple[str, ...]:
        """The logs that the account's usage stands in."""
        return tuple(part.log for part in self.entries)


def state(
    bills: Bills,
    account: tuple[str, str],
    end: End,
    entries: Iterable[Entries],
    before: Closed | None,
) -> Statement:
    """State a period of an account, (account_id, currency), after the one closed `before` it."""
    account_id, currency = account
    parts = tuple(sorted(entries))
    named = [part.log for part in parts]
    whole = bills.lines(account_id, currency, Extent(frozenset(named), end.era), end.period)
    billed: dict[LineKey, Line] = {}
    since = 0
    if before is not None:
        billed = bills.lines(account_id, currency, before.extent, before.end.period)
        since = before.end.position
    lines = _difference(whole, billed)
    charged = total_pico(line for key, line in lines if key.month == end.period)
    corrected = total_pico(line for key, line in lines if key.month != end.period)
    return Statement(
        account_id,
        currency,
        end,
        parts,
        before.closing_pico if before is not None else 0,
        tuple(
            one
            for one in bills.credits.get(account_id, ())
            if (before is None or one.position > since) and one.position < end.position
        ),
        lines,
        charged,
        corrected,
        invoiced_pico(charged + corrected, currency),
    )


def _difference(
    whole: dict[LineKey, Line], billed: dict[LineKey, Line]
) -> tuple[tuple[LineKey, Line], ...]:
    """What of the lines was not billed before, in order; lines that did not change are left out."""
    found: list[tuple[LineKey, Line]] = []
    nothing = Line()
    for key in sorted(whole.keys() | billed.keys()):
        now, then = whole.get(key, nothing), billed.get(key, nothing)
        if (now.units, now.amount_pico) != (then.units, then.amount_pico):
            line = Line(now.units - then.units, now.amount_pico - then.amount_pico)
            found.append((key, line))
    return tuple(found)


def difference(stated: Statement, made: accounts.PeriodClosed) -> str | None:
    """What a record that closes a period says otherwise than its statement; or None."""
    said: Sequence[tuple[str, money.Amount, int]] = (
        ("charged", made.charged, stated.charged_pico),
        ("corrected", made.corrected, stated.corrected_pico),
        ("invoiced", made.invoiced, stated.invoiced_pico),
    )
    for name, amount, pico in said:
        if amount.amount_pico != str(pico):
            return f"it says {name} {amount.amount_pico} pico, the logs give {pico}"
    if made.statement_hash != stated.digest():
        return (
            f"it speaks of statement {made.statement_hash.hex()[:16]}, the logs give"
            f" {stated.digest().hex()[:16]}"
        )
    return None
