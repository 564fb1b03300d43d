"""Money: integers in pico-units, 1e-12 of the currency's unit. No float, ever.

Prices are written as decimal strings per 1, 1000 or 1000000 units; they must
come out as a whole number of pico-units for one unit, or they are refused:
nothing is rounded on the way in.
"""

from __future__ import annotations

import re
from typing import Final

PICO: Final = 10**12
MAX_AMOUNT_PICO: Final = 2**127 - 1
# ASCII digits alone: `\d` would also take the digits of every other script.
_DECIMAL: Final = re.compile(r"(-?)([0-9]{1,27})(?:\.([0-9]{1,30}))?")


class MoneyError(ValueError):
    """A text that is no exact amount, or an amount beyond its limit."""


def parse_ratio(text: str, divisor: int) -> int:
    """Read a decimal string as pico-units, divided exactly by `divisor`.

    Errors: MoneyError when it is no decimal, or the result is no whole number
    of pico-units.
    """
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise MoneyError(
            f"{text!r} is not a decimal number such as 0.25 (no exponent, no sign but '-')"
        )
    sign, whole, fraction = match.group(1), match.group(2), match.group(3) or ""
    numerator = int(whole + fraction) * PICO
    denominator: int = 10 ** len(fraction) * divisor
    value, rest = divmod(numerator, denominator)
    if rest:
        raise MoneyError(
            f"{text!r} per {divisor} is not a whole number of pico-units (1e-12) for one unit"
        )
    if value > MAX_AMOUNT_PICO:
        raise MoneyError(f"{text!r} is beyond the largest amount")
    return -value if sign else value


def parse_amount(text: str) -> int:
    """Read `2.50` as pico-units. Errors: MoneyError."""
    return parse_ratio(text, 1)


def format_pico(amount_pico: int) -> str:
    """Write pico-units as a plain decimal, without trailing zeros: 2500000000000 is `2.5`."""
    sign = "-" if amount_pico < 0 else ""
    whole, fraction = divmod(abs(amount_pico), PICO)
    digits = f"{fraction:012d}".rstrip("0")
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def check_amount(amount_pico: int) -> int:
    """Give the amount back if it fits 128 bits. Errors: MoneyError."""
    if not -MAX_AMOUNT_PICO <= amount_pico <= MAX_AMOUNT_PICO:
        raise MoneyError(f"the amount {amount_pico} does not fit 128 bits")
    return amount_pico
