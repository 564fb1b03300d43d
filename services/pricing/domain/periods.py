"""Calendar months of cards with a commitment, and what closes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pricing.domain import hours
from pricing.domain.catalogue import PublishedCard
from pricing.domain.months import MONTH
from tollbook.pricing.v1 import commitment_pb2


def terms_of(entries: Iterable[PublishedCard], card_id: str, period: str) -> PublishedCard | None:
    """The newest version of a card that was in force in a month and commits to a minimum."""
    found: PublishedCard | None = None
    for known in entries:
        card = known.card
        if card.card_id != card_id or card.commitment is None or not card.commitment.minimum_pico:
            continue
        begins = hours.local_time(card.timezone, card.effective_from_us).period
        ends_us = card.effective_to_us
        is_over = (
            ends_us is not None and period > hours.local_time(card.timezone, ends_us - 1).period
        )
        if begins <= period and not is_over and (found is None or known.version > found.version):
            found = known
    return found


class Periods:
    """The months that are closed, at a size of the control log."""

    def __init__(self) -> None:
        self._closed: dict[tuple[str, str], int] = {}

    def is_closed(self, card_id: str, period: str) -> bool:
        """Tell whether a card's month is closed."""
        return (card_id, period) in self._closed

    def close(
        self,
        position: int,
        made: commitment_pb2.CommitmentClosed,
        recorded_ms: int,
        entries: Iterable[PublishedCard],
    ) -> tuple[str | None, PublishedCard | None]:
        """Close a month: (why it is refused or None, the version whose terms hold)."""
        name = f"month {made.period[:10]!r} of card {made.card_id[:70]!r}"
        if not MONTH.fullmatch(made.period):
            return f"{name}: a month is written as 2026-01", None
        if (made.card_id, made.period) in self._closed:
            return f"{name} is closed", None
        terms = terms_of(entries, made.card_id, made.period)
        if terms is None:
            return f"{name}: no version of it in that month commits to a minimum", None
        if hours.local_time(terms.card.timezone, recorded_ms * 1000).period <= made.period:
            return f"{name} is not over", None
        self._closed[made.card_id, made.period] = position
        return None, terms
