"""Double entry: postings between ledger accounts, and the sums that follow.

A posting takes an amount from its debit account and gives it to its credit
account; a ledger account's balance is what it was given minus what was taken.
So every posting adds 0 to the sum over all accounts, and so does any number
of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from kernel.money import PICO, check_amount
from kernel.placement import CONTROL_LOG
from pricing.domain.catalogue import Priced
from pricing.domain.outcomes import charged_quantity

BalanceKey = tuple[str, str]
"""(ledger account, currency)"""

USAGE: Final = "usage"
"""Kind of a posting for usage priced at its pin."""
SUSPENSE: Final = "suspense"
"""Kind of a posting for usage that waited and was priced by a later control record."""
GRANT: Final = "grant"
"""Kind of a posting for a grant of credit."""
TOP_UP: Final = "top-up"
"""Kind of a posting for a payment, asked for or by an account's rule."""
REFUND: Final = "refund"
"""Kind of a posting for a charge given back."""
TRANSFER: Final = "transfer"
"""Kind of a posting for credit that went to another account; each has a posting of its own."""
EXPIRY: Final = "expiry"
"""Kind of a posting for what was left of a grant at its end."""
ROUNDING: Final = "rounding"
"""Kind of a posting for the difference between an invoice and what it rounds."""

CONTROL: Final = CONTROL_LOG
LARGEST_ROUNDING_PICO: Final = PICO // 2
"""Half of the largest smallest unit of a currency there is: of yen and the like, 1."""
CORRECTION: Final = "correction"
"""Kind of a posting by which charges are set right; those it corrects stay."""

NO_CONTROL: Final = -1

# A posting's quantity is a 64-bit number in the contract: a fold stops well
# before it would not fit, and goes on in another posting.
_MAX_QUANTITY: Final = 2**62


def customer(account_id: str) -> str:
    """Ledger account of an account's credit: what it may still spend."""
    return f"account:{account_id}"


def revenue(account_id: str) -> str:
    """Ledger account of what an account was charged."""
    return f"revenue:{account_id}"


def granted(account_id: str) -> str:
    """Ledger account that an account's credit comes from; its balance is minus all grants."""
    return f"granted:{account_id}"


def paid(account_id: str) -> str:
    """Ledger account that top-ups come from; its balance is minus all of them."""
    return f"paid:{account_id}"


def refunded(account_id: str) -> str:
    """Ledger account that refunds come from; its balance is minus all of them."""
    return f"refunded:{account_id}"


def transferred(account_id: str) -> str:
    """Ledger account between an account and others: what it gave away, less what it got.

    Over all accounts these come to 0.
    """
    return f"transferred:{account_id}"


def expired(account_id: str) -> str:
    """Ledger account of credit that ended unused: breakage."""
    return f"expired:{account_id}"


def rounding(account_id: str) -> str:
    """Ledger account of what invoices rounded: the residual, kept."""
    return f"rounding:{account_id}"


class Posting(NamedTuple):
    """One double entry of an amount in pico-units, more than 0."""

    kind: str
    debit: str
    credit: str
    currency: str
    amount_pico: int
    log: str
    from_position: int
    to_position: int
    card_id: str = ""
    card_version: int = 0
    card_hash: bytes = b""
    line_id: str = ""
    quantity: int = 0
    control_position: int = NO_CONTROL
    """For a release from suspense: the control record that made it possible."""


def apply(balances: dict[BalanceKey, int], postings: Iterable[Posting]) -> None:
    """Add postings to balances. Errors: MoneyError beyond 128 bits; ValueError for amount <= 0."""
    for posting in postings:
        if posting.amount_pico <= 0:
            raise ValueError(f"a posting's amount is more than 0, not {posting.amount_pico}")
        for account, change in (
            (posting.debit, -posting.amount_pico),
            (posting.credit, posting.amount_pico),
        ):
            key = (account, posting.currency)
            balances[key] = check_amount(balances.get(key, 0) + change)


_ChargeKey = tuple[str, str, str, int, bytes, str, str, int, int]


class Charges:
    """Charges of a run of one log, folded by account and card line into postings."""

    def __init__(self, log: str) -> None:
        self._log = log
        self._sums: dict[_ChargeKey, list[int]] = {}
        self._overflows = 0

    def add(
        self,
        account_id: str,
        currency: str,
        priced: Priced,
        rule: str,
        amount: int,
        undelivered: int,
        first: int,
        end: int,
        control_position: int = NO_CONTROL,
    ) -> None:
        """Charge a count of units at positions [first, end). What comes to 0 is no posting."""
        quantity = charged_quantity(amount, undelivered, rule)
        amount_pico = quantity * priced.line.price_pico
        if not amount_pico:
            return
        known = priced.published
        key = (
            account_id,
            currency,
            known.card.card_id,
            known.version,
            known.content_hash,
            priced.line.line_id,
            USAGE if control_position == NO_CONTROL else SUSPENSE,
            control_position,
        )
        sums = self._sums.get((*key, 0))
        if sums is None:
            self._sums[*key, 0] = [amount_pico, quantity, first, end]
        elif sums[1] + quantity > _MAX_QUANTITY:
            self._overflows += 1
            self._sums[*key, self._overflows] = sums
            self._sums[*key, 0] = [amount_pico, quantity, first, end]
        else:
            sums[0] += amount_pico
            sums[1] += quantity
            sums[2] = min(sums[2], first)
            sums[3] = max(sums[3], end)

    def postings(self) -> list[Posting]:
        """The postings, in an order that depends on nothing but what was added."""
        return [
            Posting(
                kind=kind,
                debit=customer(account_id),
                credit=revenue(account_id),
                currency=currency,
                amount_pico=amount_pico,
                log=self._log,
                from_position=first,
                to_position=end,
                card_id=card_id,
                card_version=version,
                card_hash=card_hash,
                line_id=line_id,
                quantity=quantity,
                control_position=control_position,
            )
            for (
                account_id,
                currency,
                card_id,
                version,
                card_hash,
                line_id,
                kind,
                control_position,
                _,
            ), (amount_pico, quantity, first, end) in sorted(self._sums.items())
        ]
