"""A usage object through a reader and a card, for tests of what a request costs."""

from __future__ import annotations

from collections.abc import Mapping

from pricing.domain.card import content_hash
from pricing.domain.card_yaml import parse_card
from pricing.domain.catalogue import Catalogue, published_card
from pricing.domain.dimensions import OUTCOME_BY_WORD, STANDARD_TIER, Context
from pricing.domain.events import Event
from pricing.domain.rating import RatedLeaf, rate_event
from pricing.domain.readers import dialects

AT_US = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z."""


def catalogue(*yaml: str) -> Catalogue:
    """The cards as if published one after the other, all known."""
    found = []
    for position, text in enumerate(yaml):
        card = parse_card(text)
        found.append(published_card(position, card, position + 1, content_hash(card.document())))
    return Catalogue(found)


def rate(
    cards: Catalogue,
    dialect: str,
    usage: Mapping[str, object],
    model: str,
    tier: str = "",
    at_us: int = AT_US,
) -> tuple[RatedLeaf, ...]:
    """Rate a usage object of a model, in USD."""
    reading = dialects.named(dialect).read(dict(usage))
    tier = reading.service_tier or tier or STANDARD_TIER
    context = Context(model, model, "", tier, reading.region)
    event = Event(
        0, "one", "acme", context, OUTCOME_BY_WORD["complete"], at_us, reading.leaves, "engine"
    )
    return rate_event(event, "USD", cards)


def amount_pico(rated: tuple[RatedLeaf, ...]) -> int:
    """The sum. No leaf may wait for a price."""
    assert all(leaf.priced is not None for leaf in rated)
    return sum(leaf.amount_pico for leaf in rated)
