"""Which card's line prices a leaf: cards known at a pin, in force at an instant.

Two times are kept apart. Known time is a position of the control log: a card
published at position k is known under every pin greater than k. Valid time is
the event's own: of the known versions of a card the newest one in force at
the event's instant applies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pricing.domain.card import Card, Line, matches
from pricing.domain.dimensions import Context, LeafKey


class PublishedCard(NamedTuple):
    """A version of a card, with where the control log says so."""

    position: int
    card: Card
    version: int
    content_hash: bytes


class Priced(NamedTuple):
    """The line that prices a leaf, of which card, and by which rule it was found."""

    published: PublishedCard
    line: Line
    rule: str
    """`exact`, or `base_model` when the adapter had no line and its base model's applied."""


class Catalogue:
    """The cards known at one size of the control log.

    Answers are remembered: real traffic repeats few combinations. The memory
    is bounded and only ever a memory; it never changes an answer.
    """

    _MAX_REMEMBERED = 100_000

    def __init__(self, published: Sequence[PublishedCard]) -> None:
        self._published = tuple(published)
        self._edges = sorted(
            {
                edge
                for known in self._published
                for edge in (known.card.effective_from_us, known.card.effective_to_us)
                if edge is not None
            }
        )
        self._in_force: dict[tuple[str, str, int], tuple[PublishedCard, ...]] = {}
        self._found: dict[tuple[str, str, int, Context, LeafKey], Priced | None] = {}
        self._by_model: dict[tuple[str, int], dict[str | None, list[Line]]] = {}

    def _segment(self, event_time_us: int) -> int:
        """Index of the stretch of time between two edges that the instant falls in."""
        low, high = 0, len(self._edges)
        while low < high:
            middle = (low + high) // 2
            if self._edges[middle] <= event_time_us:
                low = middle + 1
            else:
                high = middle
        return low

    def cards_in_force(
        self, account_id: str, currency: str, event_time_us: int
    ) -> tuple[PublishedCard, ...]:
        """Cards that may price an account's event at an instant, the first to be asked first.

        A card that names the account goes before one for all; then the higher
        priority; then the card's id.
        """
        segment = self._segment(event_time_us)
        cached = self._in_force.get((account_id, currency, segment))
        if cached is not None:
            return cached
        newest: dict[str, PublishedCard] = {}
        for known in self._published:
            card = known.card
            ended = card.effective_to_us is not None and card.effective_to_us <= event_time_us
            if card.currency != currency or card.effective_from_us > event_time_us or ended:
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
            self._in_force[account_id, currency, segment] = answer
        return answer

    def price(
        self, account_id: str, currency: str, event_time_us: int, context: Context, key: LeafKey
    ) -> Priced | None:
        """The line that prices a leaf, or None: then it waits in suspense, never at zero."""
        segment = self._segment(event_time_us)
        asked = (account_id, currency, segment, context, key)
        if asked in self._found:
            return self._found[asked]
        answer = self._find(account_id, currency, event_time_us, context, key)
        if len(self._found) < self._MAX_REMEMBERED:
            self._found[asked] = answer
        return answer

    def _find(
        self, account_id: str, currency: str, event_time_us: int, context: Context, key: LeafKey
    ) -> Priced | None:
        cards = self.cards_in_force(account_id, currency, event_time_us)
        for known in cards:
            line = self._best_line(known, context, key)
            if line is not None:
                return Priced(known, line, "exact")
        if context.base_model and context.base_model != context.model:
            base = context._replace(model=context.base_model, adapter="")
            for known in cards:
                line = self._best_line(known, base, key)
                if line is not None:
                    return Priced(known, line, "base_model")
        return None

    def _best_line(self, known: PublishedCard, context: Context, key: LeafKey) -> Line | None:
        by_model = self._by_model.get((known.card.card_id, known.version))
        if by_model is None:
            by_model = {}
            for line in known.card.lines:
                by_model.setdefault(dict(line.match).get("model"), []).append(line)
            self._by_model[known.card.card_id, known.version] = by_model
        candidates = [*by_model.get(context.model, ()), *by_model.get(None, ())]
        found = [line for line in candidates if matches(line, key, context)]
        return max(found, key=lambda line: line.specificity, default=None)
