"""What a line charges for a count: prices after their factors, and the sums they give. Pure.

A factor makes another price for one unit, in whole pico-units, by the line's
declared rounding; every charge is then integers alone. That is the one place
where anything is rounded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Final, NamedTuple

from pricing.domain.card import DOWN, GRADUATED, MONTHLY_VOLUME, UP, VOLUME, Line

ONE: Final = Fraction(1)


def rounded(pico: Fraction, rounding: str) -> int:
    """A price in whole pico-units, by a line's rounding."""
    if rounding == UP:
        return ceil(pico)
    if rounding == DOWN:
        return floor(pico)
    # Also where the card says `exact`: its rules have seen to it that nothing is left to round.
    return round(pico)


class Price(NamedTuple):
    """A line's prices in pico-units, factors applied: its own, then each step's."""

    line: Line
    factor: Fraction
    pico: tuple[int, ...]
    bounds: tuple[int, ...]
    """Of each step, the first count that has its price."""

    is_metered: bool
    """Whether it depends on what else was used in the month (meters.py)."""
    is_graduated: bool
    """Whether each token has the price of its own place in the context."""
    is_even: bool
    """Whether a sum of counts costs the sum of their costs, under one context length tier."""

    @property
    def unit_pico(self) -> int:
        """Of one unit, or of one package, before any step."""
        return self.pico[0]

    @property
    def highest_pico(self) -> int:
        """The dearest there is."""
        return max(self.pico)

    def at(self, context_units: int) -> int:
        """Price of one unit in a request of a context's length."""
        return self.pico[bisect_right(self.bounds, context_units)]


def price_of(line: Line, factor: Fraction = ONE) -> Price:
    """A line's prices under a factor."""
    whole = factor if line.surcharge else factor * (1 + line.percentage / 100)
    tiers = line.tiers
    steps = () if tiers is None else tiers.steps
    pico = tuple(
        rounded(price_pico * whole, line.rounding)
        for price_pico in (line.price_pico, *(step.price_pico for step in steps))
    )
    return _price(line, factor, pico, () if tiers is None else tiers.bounds())


def _price(line: Line, factor: Fraction, pico: tuple[int, ...], bounds: tuple[int, ...]) -> Price:
    tiers = line.tiers
    is_graduated = tiers is not None and tiers.by != MONTHLY_VOLUME and tiers.mode == GRADUATED
    uneven = line.package_units or line.minimum_units or line.minimum_pico
    is_even = not (uneven or is_graduated or line.is_metered)
    return Price(line, factor, pico, bounds, line.is_metered, is_graduated, is_even)


def percentage_of(line: Line, base: Price, factor: Fraction) -> Price:
    """A surcharge's prices where it is a percentage of another line's."""
    share = line.percentage / 100 * factor
    pico = tuple(rounded(price_pico * share, line.rounding) for price_pico in base.pico)
    return _price(line, factor, pico, base.bounds)


def charge_pico(price: Price, units: int, context_units: int, start: int) -> int:
    """What a leaf costs that is charged for `units`; not for a metered price.

    `start` is the place in the context of the leaf's first unit, from 0.
    """
    line = price.line
    if not units:
        return 0
    if price.is_graduated:
        units = max(units, line.minimum_units)
        amount = stretch_pico(price, start, start + units)
    else:
        units = max(units, line.minimum_units)
        if line.package_units:
            units = -(-units // line.package_units)
        amount = units * price.at(context_units)
    return max(amount, line.minimum_pico)


def most_of_one_pico(price: Price) -> int:
    """The most that one unit adds, whatever the context or the month. See `fixed_pico`."""
    return -(-price.highest_pico // (price.line.package_units or 1))


def fixed_pico(price: Price) -> int:
    """The most that a leaf adds beyond that, whatever its count: a package begun, a minimum."""
    line = price.line
    package = price.highest_pico if line.package_units else 0
    least = line.minimum_units * most_of_one_pico(price)
    return max(package + least, line.minimum_pico)


def stretch_pico(price: Price, start: int, end: int) -> int:
    """What the units at places [start, end), from 0, cost, each at its own place's price."""
    free = price.line.included_units
    total, at = 0, max(start, min(end, free))
    while at < end:
        step = bisect_right(price.bounds, at + 1)
        stop = min(end, price.bounds[step] - 1) if step < len(price.bounds) else end
        total += (stop - at) * price.pico[step]
        at = stop
    return total


def month_pico(price: Price, start: int, units: int, whole: int) -> int:
    """What units of a month cost, by their places [start, start + units) of `whole` units."""
    tiers = price.line.tiers
    if tiers is not None and tiers.mode == VOLUME:
        free = min(max(price.line.included_units - start, 0), units)
        return (units - free) * price.pico[bisect_right(price.bounds, whole)]
    return stretch_pico(price, start, start + units)


def starts_in_context(leaves: Sequence[tuple[str, str, str, int]]) -> list[int]:
    """Where each token leaf begins in its request's context, from 0.

    Leaves are (unit, direction, cache use, amount). What was read from a cache
    stands first, then what was written to one, then fresh tokens, then the
    output; leaves that are alike in this, in the order of the event.
    """
    order = {"read": 0, "write": 1}

    def rank(index: int) -> tuple[int, int]:
        unit, direction, cache_use, _ = leaves[index]
        if unit != "token":
            return 9, index
        return (3 if direction != "in" else order.get(cache_use, 2)), index

    starts = [0] * len(leaves)
    at = 0
    for index in sorted(range(len(leaves)), key=rank):
        starts[index] = at
        if leaves[index][0] == "token":
            at += leaves[index][3]
    return starts
