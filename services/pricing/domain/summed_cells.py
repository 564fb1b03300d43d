"""The cells of a tally summed by account and rate, before anything is charged. Pure.

A run has more cells than charges: a cell is of one model, one stretch of time
and one engine, and many of them are charged to one account at one rate. So
they are summed by columns, and Python sees sums alone.

Sums are 64-bit numbers. None overflows: it takes each quantity of an event once
at the most, so it is no more than all of a run (tally.MAX_LEAVES). What it is
worth in pico-units is an integer of Python, which has no end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

from pricing.domain.compiled import columns as at
from pricing.domain.price_book import Book, Prices
from pricing.domain.rates import Rate, Summed
from pricing.domain.tally import Numbers, Tally

_FIELDS: Final = 5
"""Of `Totals`: requests, and the kinds of tokens that `Prices.tokens` names."""


class PricedCells(NamedTuple):
    """The cells of a tally, and the prices of each."""

    cells: Numbers
    prices: Sequence[Prices]
    price_of: Numbers
    """Of each cell, the place of its prices among these."""
    charged: Numbers
    """Of each cell, how many units are charged; as `Prices.charged`."""

    def column(self, of: Callable[[Prices], int]) -> Numbers:
        """A number of its prices, for each cell."""
        return _column(self.prices, of)[self.price_of]


def priced_cells(found: Tally, books: Sequence[Book], book_of: Numbers) -> PricedCells:
    """Find the prices of every cell; `book_of` is the place of each group's book."""
    kinds = found.kinds()
    keys = [
        (packed, found.attribute(place, length) if length else b"")
        for packed, place, length in found.cells[kinds.samples, : at.CELL_AMOUNT].tolist()
    ]
    cells, count = found.cells, max(len(keys), 1)
    asked, price_of = np.unique(
        book_of[cells[:, at.CELL_GROUP]] * count + kinds.number_of, return_inverse=True
    )
    pairs = zip((asked // count).tolist(), (asked % count).tolist(), strict=True)
    prices = [books[book].packed(*keys[kind]) for book, kind in pairs]
    amount, undelivered = cells[:, at.CELL_AMOUNT], cells[:, at.CELL_UNDELIVERED]
    delivered = _column(prices, attrgetter("charges_delivered"))[price_of] * (amount - undelivered)
    charged = np.where(_column(prices, attrgetter("charges_all"))[price_of], amount, delivered)
    return PricedCells(cells, prices, price_of, charged)


def _column(prices: Sequence[Prices], of: Callable[[Prices], int]) -> Numbers:
    return np.fromiter(map(of, prices), np.int64, len(prices))


def sums_by(number_of: Numbers, amounts: Numbers, count: int) -> Numbers:
    """Sums of the amounts of each of so many numbers."""
    sums = np.zeros(count, dtype=np.int64)
    np.add.at(sums, number_of, amounts)
    return sums


def totals_of(priced: PricedCells, account_of: Numbers, requests: Numbers) -> Numbers:
    """The fields of each account's `Totals`: `account_of` is of each cell, the accounts' number
    and their requests are given."""
    sums = np.zeros((len(requests), _FIELDS), dtype=np.int64)
    np.add.at(
        sums,
        (account_of, priced.column(attrgetter("tokens"))),
        priced.cells[:, at.CELL_AMOUNT],
    )
    # What counts as no tokens was added to the first field, which is the requests'.
    sums[:, 0] = requests
    return sums


def generated_of(priced: PricedCells, engine_of: Numbers, engines: int) -> Numbers:
    """Tokens that each engine's own counter has too; `engine_of` is of each cell."""
    amounts = priced.cells[:, at.CELL_AMOUNT] * priced.column(attrgetter("is_generated"))
    return sums_by(engine_of, amounts, engines)


def sums_of(
    priced: PricedCells, account_of: Numbers, which: Numbers, first_position: int
) -> Iterator[tuple[int, list[Summed]]]:
    """(account, what it is charged at each rate) of some cells, whose leaves may be summed.

    In order of accounts. A leaf with surcharges is charged by each of them.
    """
    # What is charged nothing is no part of a charge, nor are its positions.
    which = which[priced.charged[which] > 0]
    rates: list[Rate] = []
    numbers: dict[int, int] = {}
    # Equal rates are one object, as a rule. Where they are not they are charged in two parts.
    for prices in priced.prices:
        for part in prices.parts:
            if numbers.setdefault(id(part.rate), len(rates)) == len(rates):
                rates.append(part.rate)
    for place in range(max((len(prices.parts) for prices in priced.prices), default=0)):
        rate_of = priced.column(partial(_rate_number, place, numbers))
        having = which[rate_of[which] >= 0]
        yield from _summed(priced, account_of, rate_of, having, rates, first_position)


def _rate_number(place: int, numbers: dict[int, int], prices: Prices) -> int:
    """The number of the rate of a line or surcharge by its place; -1: there is none."""
    parts = prices.parts
    return numbers[id(parts[place].rate)] if place < len(parts) else -1


def _summed(
    priced: PricedCells,
    account_of: Numbers,
    rate_of: Numbers,
    which: Numbers,
    rates: Sequence[Rate],
    first_position: int,
) -> Iterator[tuple[int, list[Summed]]]:
    asked = account_of[which] * len(rates) + rate_of[which]
    order = np.argsort(asked, kind="stable")
    which, asked = which[order], asked[order]
    starts = np.flatnonzero(np.diff(asked, prepend=-1))
    if not len(starts):
        return
    firsts = priced.cells[which, at.CELL_FIRST] + first_position
    ends = priced.cells[which, at.CELL_END] + first_position
    rows: list[Summed] = []
    last = -1
    for pair, units, first, end in zip(
        asked[starts].tolist(),
        np.add.reduceat(priced.charged[which], starts).tolist(),
        np.minimum.reduceat(firsts, starts).tolist(),
        np.maximum.reduceat(ends, starts).tolist(),
        strict=True,
    ):
        account, rate = divmod(pair, len(rates))
        if account != last:
            if rows:
                yield last, rows
            rows, last = [], account
        rows.append((rates[rate], units, first, end))
    yield last, rows
