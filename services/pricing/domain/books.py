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

BalanceKey = tuple[str, str]
"""(ledger account, currency)"""

USAGE: Final = "usage"
"""Kind of a posting for usage priced at its pin."""
SUSPENSE: Final = "suspense"
"""Kind of a posting for usage that waited and was priced by a later control record."""
ADJUSTMENT: Final = "adjustment"
"""Kind of a posting by which usage of a month changes what other usage of it costs."""
COMMITMENT: Final = "commitment"
"""Kind of a posting by which a month is brought to a card's least or most."""
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
    rule: str = ""
    """How the line was found, and the factors on its price: `line*flex`."""
    period: str = ""
    """Calendar month that usage is billed in: the card's, where the charge depends on one."""


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
