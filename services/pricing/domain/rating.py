"""Rating: what each leaf of an event is charged. Pure, integers only.

RATING_VERSION stands in every cut: another version may give other bytes from
the same logs, so it changes with any change of result.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.dimensions import OUTCOMES
from pricing.domain.events import Event, EventLeaf

RATING_VERSION: Final = 1


class RatedLeaf(NamedTuple):
    """One leaf, what of it is charged, and by which line. `priced` None: suspense."""

    leaf: EventLeaf
    charged: int
    outcome_rule: str
    priced: Priced | None
    amount_pico: int


def charged_quantity(leaf: EventLeaf, rule: str) -> int:
    """How many of a leaf's units an outcome rule charges."""
    if rule == "generated":
        return leaf.amount
    if rule == "delivered":
        return leaf.amount - leaf.undelivered
    return 0


def rate_event(event: Event, currency: str, catalogue: Catalogue) -> tuple[RatedLeaf, ...]:
    """Rate one event for an account of a currency under what is known.

    A leaf with amount 0 costs nothing and needs no price. Prices and
    quantities are not negative, so neither is any amount.
    """
    rated: list[RatedLeaf] = []
    for leaf in event.leaves:
        if leaf.amount == 0:
            continue
        priced = catalogue.price(
            event.account_id, currency, event.event_time_us, event.context, leaf.key
        )
        if priced is None:
            rated.append(RatedLeaf(leaf, 0, "", None, 0))
            continue
        outcome = OUTCOMES.get(event.outcome, f"#{event.outcome}")
        rule = priced.published.card.outcome_rule(outcome)
        charged = charged_quantity(leaf, rule)
        rated.append(RatedLeaf(leaf, charged, rule, priced, charged * priced.line.price_pico))
    return tuple(rated)
