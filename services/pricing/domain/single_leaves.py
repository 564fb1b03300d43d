"""Like events of a run, and what single leaves of them cost where a sum of counts would not do.

A package, a minimum or a price by a token's own place is charged leaf by leaf.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from pricing.domain.events import read_event
from pricing.domain.price_book import Book, Prices
from pricing.domain.prices import charge_pico
from pricing.domain.rating import context_units, starts_of
from pricing.domain.state import Totals, Use


class Owner(NamedTuple):
    """Whose events they are."""

    account_id: str
    currency: str | None
    """None: no account is known by this id at the pin."""
    totals: Totals


class Group(NamedTuple):
    """Events of a run that one price rules for each kind of leaf."""

    owner: Owner
    book: Book
    engine_id: str
    use: Use | None
    """What they are summed by; None where nothing is."""


class Kind:
    """A kind of leaf in a group that is read one by one: its prices, and its counts so far."""

    __slots__ = ("amount", "by_one_pico", "end", "first", "prices", "undelivered")

    def __init__(self, prices: Prices, first: int) -> None:
        self.prices = prices
        self.amount = 0
        self.undelivered = 0
        self.first = first
        self.end = first
        self.by_one_pico = [0] * len(prices.parts)
        """What is charged of single leaves."""

    def add(self, amount: int, undelivered: int, position: int) -> None:
        """Add a leaf of the entry at `position`, which is not before any other."""
        self.amount += amount
        self.undelivered += undelivered
        self.end = position + 1


def add_one(
    by_one_pico: list[int],
    prices: Prices,
    amount: int,
    undelivered: int,
    context_units: int,
    start: int,
    times: int = 1,
) -> None:
    """Charge a leaf by itself, where that matters."""
    charged = prices.charged(amount, undelivered)
    for index, part in enumerate(prices.parts):
        if part.goes_by_one:
            by_one_pico[index] += times * charge_pico(part.price, charged, context_units, start)


def by_one(
    group: Group,
    prices: Prices,
    first_position: int,
    data: Sequence[bytes],
    quantities: Sequence[tuple[int, int, int]],
) -> list[int]:
    """What leaves cost one by one: (index of the event, amount, undelivered)."""
    by_one_pico = [0] * len(prices.parts)
    if not prices.goes_by_place:
        # The context's length is within one band: any of the group's is as good.
        length = group.book.context_units
        counts = Counter((amount, undelivered) for _, amount, undelivered in quantities)
        for (amount, undelivered), times in counts.items():
            add_one(by_one_pico, prices, amount, undelivered, length, 0, times)
        return by_one_pico
    for index in dict.fromkeys(index for index, _, _ in quantities):
        event = read_event(first_position + index, data[index])
        length = context_units(event)
        for leaf, start in zip(event.leaves, starts_of(event), strict=True):
            if leaf.key == prices.key:
                add_one(by_one_pico, prices, leaf.amount, leaf.undelivered, length, start)
    return by_one_pico
