"""Sums of charges, and the postings that they come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from pricing.domain import books
from pricing.domain.books import Posting

# A posting's quantity is a 64-bit number in the contract: a fold stops well
# before it would not fit, and goes on in another posting.
_MAX_QUANTITY: Final = 2**62


class Fold(NamedTuple):
    """What charges of one account and log have in common that are one posting."""

    currency: str
    card_id: str
    version: int
    card_hash: bytes
    line_id: str
    kind: str
    control_position: int
    """As in a posting."""
    rule: str
    month: str


Sums = dict[str, dict[tuple[Fold, int], list[int]]]
"""By account and fold: (pico-units, units, first position, end). Beside the fold the number of
one that was full, 0 for the open one."""


def add_to(
    sums: dict[tuple[Fold, int], list[int]],
    fold: Fold,
    amount_pico: int,
    quantity: int,
    first: int,
    end: int,
) -> None:
    """Add an amount that is not below 0 to those of an account that are folded with it."""
    older = sums.get((fold, 0))
    if older is None:
        sums[fold, 0] = [amount_pico, quantity, first, end]
    elif older[1] + quantity > _MAX_QUANTITY:
        # As many as there are is a number that none of them has.
        sums[fold, len(sums)] = older
        sums[fold, 0] = [amount_pico, quantity, first, end]
    else:
        older[0] += amount_pico
        older[1] += quantity
        if first < older[2]:
            older[2] = first
        if end > older[3]:
            older[3] = end


def postings_of(log: str, sums: Sequence[Sums]) -> list[Posting]:
    """Postings of what is more than 0, in an order that depends on nothing but what was added."""
    postings: list[Posting] = []
    # Each account's by themselves: sorting all at once compares accounts above all.
    of_accounts: dict[str, list[tuple[tuple[Fold, int], list[int]]]] = {}
    for some in sums:
        for account_id, of_account in some.items():
            of_accounts.setdefault(account_id, []).extend(of_account.items())
    for account_id, items in sorted(of_accounts.items()):
        customer, revenue = books.customer(account_id), books.revenue(account_id)
        items.sort()
        for (fold, _), (amount_pico, quantity, first, end) in items:
            if not amount_pico:
                continue
            currency, card_id, version, card_hash, line_id, kind, position, rule, month = fold
            # As a tuple, in the order of its fields: by name it takes four times the time.
            posting = (
                kind,
                customer,
                revenue,
                currency,
                amount_pico,
                log,
                first,
                end,
                card_id,
                version,
                card_hash,
                line_id,
                quantity,
                position,
                rule,
                month,
            )
            postings.append(tuple.__new__(Posting, posting))
    return postings
