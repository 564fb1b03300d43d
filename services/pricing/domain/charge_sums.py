"""Sums of charges, and the postings that they come to."""

from __future__ import annotations

from collections.abc import Sequence

from pricing.domain import books
from pricing.domain.books import Posting

ChargeKey = tuple[str, str, str, int, bytes, str, str, int, str, str]
"""(account, currency, card, version, hash, line, kind, control position, rule, month)"""
Sums = dict[tuple[ChargeKey, int], list[int]]
"""(pico-units, units, first position, end) of what is folded together; beside the key the number
of a fold that was full, 0 for the open one."""


def postings_of(log: str, sums: Sequence[Sums]) -> list[Posting]:
    """Postings of what is more than 0, in an order that depends on nothing but what was added."""
    postings: list[Posting] = []
    # Each account's by themselves: sorting all at once compares accounts above all.
    of_accounts: dict[str, list[tuple[tuple[ChargeKey, int], list[int]]]] = {}
    for some in sums:
        for item in some.items():
            of_accounts.setdefault(item[0][0][0], []).append(item)
    for account_id, items in sorted(of_accounts.items()):
        customer, revenue = books.customer(account_id), books.revenue(account_id)
        items.sort()
        for (key, _), (amount_pico, quantity, first, end) in items:
            if not amount_pico:
                continue
            _, currency, card_id, version, card_hash, line_id, kind, position, rule, month = key
            # By place, in the order of its fields: by name it takes twice the time.
            postings.append(
                Posting(
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
            )
    return postings
