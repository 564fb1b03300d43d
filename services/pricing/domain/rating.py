"""Rating one event: what each of its leaves is charged, by which line. Pure, integers only.

This is the reference: receipts and what waits in suspense are rated by it,
and batch.py, which rates a run of events at once, must agree with it.

What a month's volume decides (included units, tiers by monthly volume) is
summed in meters.py; here such a leaf has the units that count, and no amount
of its own.

RATING_VERSION stands in every cut: another version may give other bytes from
the same logs, so it changes with any change of result.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.dimensions import OUTCOMES
from pricing.domain.events import Event, EventLeaf
from pricing.domain.outcomes import charged_quantity
from pricing.domain.prices import charge_pico, starts_in_context

RATING_VERSION: Final = 2


class RatedLeaf(NamedTuple):
    """One leaf, what of it is charged, and by which line. `priced` None: suspense.

    A surcharge is a rated leaf of its own, after the one it is on top of.
    """

    leaf: EventLeaf
    charged: int
    outcome_rule: str
    priced: Priced | None
    amount_pico: int
    """Of a metered line 0: its month decides (meters.py)."""
    leaf_index: int = 0
    """Of the leaf in its event."""


def outcome_word(outcome: int) -> str:
    """An outcome's word as cards know it; a number the contract does not know reads `#N`."""
    return OUTCOMES.get(outcome, f"#{outcome}")


def context_units(event: Event) -> int:
    """Length of an event's context: every token of its prompt, cached or not."""
    return sum(
        leaf.amount
        for leaf in event.leaves
        if leaf.key.unit == "token" and leaf.key.direction == "in"
    )


def starts_of(event: Event) -> list[int]:
    """Where each leaf begins in the event's context."""
    return starts_in_context(
        [
            (leaf.key.unit, leaf.key.direction, leaf.key.cache_use, leaf.amount)
            for leaf in event.leaves
        ]
    )


def rate_event(
    event: Event, currency: str, catalogue: Catalogue, only: Collection[int] | None = None
) -> tuple[RatedLeaf, ...]:
    """Rate one event for an account of a currency under what is known.

    `only`: indexes of the leaves to rate; the others make up the context still.
    A leaf with amount 0 costs nothing and needs no price: it is left out.
    Prices and quantities are not negative, so neither is any amount.
    """
    rated: list[RatedLeaf] = []
    segment = catalogue.segment(event.event_time_us)
    length = context_units(event)
    for index, (leaf, start) in enumerate(zip(event.leaves, starts_of(event), strict=True)):
        if leaf.amount == 0 or (only is not None and index not in only):
            continue
        priced = catalogue.price(event.account_id, currency, segment, event.context, leaf.key)
        if priced is None:
            rated.append(RatedLeaf(leaf, 0, "", None, 0, index))
            continue
        rule = priced.published.card.outcome_rule(outcome_word(event.outcome))
        charged = charged_quantity(leaf.amount, leaf.undelivered, rule)
        for one in (priced, *priced.surcharges):
            amount_pico = 0
            if not one.price.is_metered:
                amount_pico = charge_pico(one.price, charged, length, start)
            rated.append(RatedLeaf(leaf, charged, rule, one, amount_pico, index))
    return tuple(rated)
