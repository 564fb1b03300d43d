"""What a unit is charged, and what postings say of it: charges of one rate are summed first."""

from __future__ import annotations

from typing import NamedTuple

from pricing.domain import books
from pricing.domain.books import NO_CONTROL
from pricing.domain.catalogue import Priced
from pricing.domain.charge_sums import Fold


class Rate(NamedTuple):
    """What a line asks for a unit: units of one account and rate are summed, then charged."""

    fold: Fold
    """What a posting of it says."""
    priced: Priced
    unit_pico: int
    is_by_month: bool
    """Whether a month decides more than that: a meter, or a commitment."""
    of_line: tuple[str, int, str]
    """(card, version, line) that what is charged is summed by."""


Summed = tuple[Rate, int, int, int]
"""Units of a rate, more than 0, that stand at positions [first, end)."""


def fold_of(currency: str, priced: Priced, month: str, control_position: int = NO_CONTROL) -> Fold:
    """What a charge is folded by; `month` is that of the events, as in `Charges.add`."""
    known = priced.published
    return Fold(
        currency,
        known.card.card_id,
        known.version,
        known.content_hash,
        priced.line.line_id,
        books.USAGE if control_position == NO_CONTROL else books.SUSPENSE,
        control_position,
        priced.rule_text,
        priced.period or month,
    )


def rate_of(currency: str, priced: Priced, month: str, unit_pico: int) -> Rate:
    """The rate of a line for events of a month, where a unit costs `unit_pico`."""
    by_month = priced.price.is_metered or priced.published.card.commitment is not None
    fold = fold_of(currency, priced, month)
    of_line = fold.card_id, fold.version, fold.line_id
    return Rate(fold, priced, unit_pico, by_month, of_line)
