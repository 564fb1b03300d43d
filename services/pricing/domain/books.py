"""Double entry: postings between ledger accounts, and the sums that follow.

A posting takes an amount from its debit account and gives it to its credit
account; a ledger account's balance is what it was given minus what was taken.
So every posting adds 0 to the sum over all accounts, and so does any number
of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kernel.money import check_amount

BalanceKey = tuple[str, str]
"""(ledger account, currency)"""


def customer(account_id: str) -> str:
    """Ledger account of an account's credit: what it may still spend."""
    return f"account:{account_id}"


def revenue(account_id: str) -> str:
    """Ledger account of what an account was charged."""
    return f"revenue:{account_id}"


def granted(account_id: str) -> str:
    """Ledger account that an account's credit comes from; its balance is minus all grants."""
    return f"granted:{account_id}"


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
    control_position: int = -1
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
