"""Which card's line prices a leaf: cards known at a pin, in force at an instant.

Two times are kept apart. Known time is a position of the control log: a card
published at position k is known under every pin greater than k. Valid time is
the event's own: of the known versions of a card, the newest that is in force
at the event's instant applies. So a version with an end gives way, at its
end, to the version before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from pricing.domain.card import Card, Line
from pricing.domain.dimensions import Context, LeafKey
from pricing.domain.selection import CompiledCard

BY_LINE: Final = "line"
"""Rule: a line matched the event as it is."""
BY_BASE_MODEL: Final = "base_model"
"""Rule: the adapter had no line of its own, its base model's applied."""


class PublishedCard(NamedTuple):
    """A version of a card, with where the control log says so."""

    position: int
    card: Card
    version: int
    content_hash: bytes
    compiled: CompiledCard


def published_card(position: int, card: Card, version: int, content_hash: bytes) -> PublishedCard:
    """A version as the catalogue holds it: compiled once, whatever the number of catalogues."""
    return PublishedCard(position, card, version, content_hash, CompiledCard(card))


class Priced(NamedTuple):
    """The line that prices a leaf, of which card, and by which rule it was found."""

    published: PublishedCard
    line: Line
    rule: str


class Catalogue:
    """The cards known at one size of the control log.

    Answers are remembered, because real traffic repeats few combinations. The
    memory is bounded, and only ever a memory: it never changes an answer.
    """

    _MAX_REMEMBERED: Final = 100_000

    def __init__(self, published: Sequence[PublishedCard]) -> None:
        self._published = tuple(published)
        self._edges_us = sorted(
            {
                edge_us
                for known in self._published
                for edge_us in (known.card.effective_from_us, known.card.effective_to_us)
                if edge_us is not None
            }
        )
        # Accounts that some card names; all others see the same cards.
        self._named = {account for known in self._published for account in known.card.accounts}
        self._in_force: dict[tuple[str, str, int], tuple[PublishedCard, ...]] = {}
        self._found: dict[tuple[str, str, int, Context, LeafKey], Priced | None] = {}

    @property
    def edges_us(self) -> Sequence[int]:
        """The instants, in order, at which another card may apply."""
        return self._edges_us

    def segment(self, event_time_us: int) -> int:
        """Number of the stretch of time, between two edges of cards, that an instant falls in."""
        return bisect_right(self._edges_us, event_time_us)

    def _segment_us(self, segment: int) -> int:
        """An instant of a segment: its first; what holds for one instant holds for all of it."""
        if segment:
            return self._edges_us[segment - 1]
        return self._edges_us[0] - 1 if self._edges_us else 0

    def cards_in_force(
        self, account_id: str, currency: str, segment: int
    ) -> tuple[PublishedCard, ...]:
        """Cards that may price an account's events in a segment, the first to be asked first.

        A card that names the account goes before one for all; then the higher
        priority; then the card's id.
        """
        asked = (account_id if account_id in self._named else "", currency, segment)
        cached = self._in_force.get(asked)
        if cached is not None:
            return cached
        at_us = self._segment_us(segment)
        newest: dict[str, PublishedCard] = {}
        for known in self._published:
            card = known.card
            ended = card.effective_to_us is not None and card.effective_to_us <= at_us
            if card.currency != currency or card.effective_from_us > at_us or ended:
                continue
            if card.accounts and account_id not in card.accounts:
                continue
            newest[card.card_id] = known
        answer = tuple(
            sorted(
                newest.values(),
                key=lambda known: (
                    not known.card.accounts,
                    -known.card.priority,
                    known.card.card_id,
                ),
            )
        )
        if len(self._in_force) < self._MAX_REMEMBERED:
            self._in_force[asked] = answer
        return answer

    def price(
        self, account_id: str, currency: str, segment: int, context: Context, key: LeafKey
    ) -> Priced | None:
        """The line that prices a leaf, or None: then it waits in suspense, never at zero."""
        who = account_id if account_id in self._named else ""
        asked = (who, currency, segment, context, key)
        if asked in self._found:
            return self._found[asked]
        answer = self._find(account_id, currency, segment, context, key)
        if len(self._found) < self._MAX_REMEMBERED:
            self._found[asked] = answer
        return answer

    def _find(
        self, account_id: str, currency: str, segment: int, context: Context, key: LeafKey
    ) -> Priced | None:
        cards = self.cards_in_force(account_id, currency, segment)
        for known in cards:
            line = known.compiled.best_line(key, context)
            if line is not None:
                return Priced(known, line, BY_LINE)
        if context.base_model != context.model:
            base = context._replace(model=context.base_model, adapter="")
            for known in cards:
                line = known.compiled.best_line(key, base)
                if line is not None:
                    return Priced(known, line, BY_BASE_MODEL)
        return None
