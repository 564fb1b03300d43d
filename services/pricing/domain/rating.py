"""Rating one event: what each of its leaves is charged, by which line. Pure, integers only.

This is the reference: receipts and what waits in suspense are rated by it,
and batch.py, which rates a run of events at once, must agree with it.

RATING_VERSION stands in every cut: another version may give other bytes from
the same logs, so it changes with any change of result.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.dimensions import OUTCOMES
from pricing.domain.events import Event, EventLeaf
from pricing.domain.outcomes import charged_quantity

RATING_VERSION: Final = 1


class RatedLeaf(NamedTuple):
    """One leaf, what of it is charged, and by which line. `priced` None: suspense."""

    leaf: EventLeaf
    charged: int
    outcome_rule: str
    priced: Priced | None
    amount_pico: int


def outcome_word(outcome: int) -> str:
    """An outcome's word as cards know it; a number the contract does not know reads `#N`."""
    return OUTCOMES.get(outcome, f"#{outcome}")


def rate_event(event: Event, currency: str, catalogue: Catalogue) -> tuple[RatedLeaf, ...]:
    """Rate one event for an account of a currency under what is known.

    A leaf with amount 0 costs nothing and needs no price: it is left out.
    Prices and quantities are not negative, so neither is any amount.
    """
    rated: list[RatedLeaf] = []
    segment = catalogue.segment(event.event_time_us)
    for leaf in event.leaves:
        if leaf.amount == 0:
            continue
        priced = catalogue.price(event.account_id, currency, segment, event.context, leaf.key)
        if priced is None:
            rated.append(RatedLeaf(leaf, 0, "", None, 0))
            continue
        rule = priced.published.card.outcome_rule(outcome_word(event.outcome))
        charged = charged_quantity(leaf.amount, leaf.undelivered, rule)
        rated.append(RatedLeaf(leaf, charged, rule, priced, charged * priced.line.price_pico))
    return tuple(rated)
