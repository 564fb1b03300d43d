"""Rating as one pure call: a batch of log entries and the cards, to postings and receipts.

    done = rate(Batch("usage-0", 0, leaves), Cards(catalogue, currency_of))
    done.postings                  # what the batch charges, folded
    for receipt in done.receipts() # what each event is charged, line by line; adds up to the same

The same call stands behind the projector, previews, re-rating and the auditor
(projection.py adds what waits for a price). It reads no clock and no file. Of
`cards` only the months move: meters and commitments, which are the state that
a batch leaves to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pricing.domain.batch import rate_run
from pricing.domain.books import Posting
from pricing.domain.catalogue import Catalogue
from pricing.domain.charges import Charges
from pricing.domain.events import Event, UnusableLeafError, event_of, record_of, usage_event_of
from pricing.domain.meters import Commitments, Meters, MonthKey, meter_of
from pricing.domain.rating import RatedLeaf, rate_event
from pricing.domain.state import Effects


class Batch(NamedTuple):
    """Leaves of one log at consecutive positions, that share a pin."""

    log: str
    first_position: int
    leaves: Sequence[bytes]


@dataclass(slots=True)
class Cards:
    """What a batch is rated by: cards as known at its pin, accounts, and the months so far."""

    catalogue: Catalogue
    currency_of: Callable[[str], str | None]
    meters: Meters = field(default_factory=Meters)
    commitments: Commitments = field(default_factory=Commitments)


class Receipt(NamedTuple):
    """What one event is charged."""

    event: Event
    leaves: tuple[RatedLeaf, ...]
    """Metered ones with what their units add to the month."""
    adjustment_pico: int
    """What it changes of what others of its months cost, and of commitments."""

    @property
    def amount_pico(self) -> int:
        """What the account owes more because of it."""
        return sum(part.amount_pico for part in self.leaves) + self.adjustment_pico

    @property
    def waits(self) -> bool:
        """Whether a leaf has no price: then it waits, and is in no amount."""
        return any(part.priced is None for part in self.leaves)


class Rating(NamedTuple):
    """A batch, rated."""

    batch: Batch
    cards: Cards
    effects: Effects
    unpriced: list[int]
    """Positions of events with a leaf that has no price."""

    @property
    def postings(self) -> list[Posting]:
        """What it charges, folded by account, line and rule."""
        return self.effects.postings

    def receipts(self) -> Iterator[Receipt]:
        """What each event is charged, in the order of the log."""
        # The first move of each has what it stood at before all.
        meters = {move.key: move.before for move in reversed(self.effects.meter_moves)}
        sums = {move.key: move.before for move in reversed(self.effects.month_moves)}
        months = Months(self.cards.meters.at(meters), self.cards.commitments.at(sums))
        for position, raw in enumerate(self.batch.leaves, self.batch.first_position):
            try:
                record = record_of(raw)
                if record is None or record.WhichOneof("body") != "usage_event":
                    continue
                event = event_of(position, usage_event_of(record))
            except UnusableLeafError:
                # Named in the effects; it is charged nothing.
                continue
            currency = self.cards.currency_of(event.account_id)
            if currency is None:
                parts: tuple[RatedLeaf, ...] = tuple(
                    RatedLeaf(leaf, 0, "", None, 0, index)
                    for index, leaf in enumerate(event.leaves)
                    if leaf.amount
                )
                yield Receipt(event, parts, 0)
                continue
            yield months.receipt(event, currency, rate_event(event, currency, self.cards.catalogue))


class Months:
    """Meters and commitments as they stood before a step, moved on event by event."""

    def __init__(self, meters: Meters, commitments: Commitments | None) -> None:
        self._meters = meters
        self._commitments = commitments
        """None: commitments are not looked at."""

    def receipt(self, event: Event, currency: str, rated: Sequence[RatedLeaf]) -> Receipt:
        """An event's receipt, and its months moved on."""
        parts: list[RatedLeaf] = []
        adjustment_pico = 0
        for part in rated:
            priced = part.priced
            if priced is None:
                parts.append(part)
                continue
            own_pico, whole_pico = part.amount_pico, part.amount_pico
            if priced.price.is_metered and part.charged:
                key, layer = meter_of(event.account_id, currency, priced)
                changes = self._meters.add(key, {layer: (part.charged, priced)})
                own = next(change.amount_pico for change in changes if change.layer == layer)
                own_pico = max(own, 0)
                whole_pico = sum(change.amount_pico for change in changes)
            parts.append(part._replace(amount_pico=own_pico))
            adjustment_pico += whole_pico - own_pico
            card = priced.published.card
            if self._commitments is not None and card.commitment is not None and whole_pico:
                month = MonthKey(event.account_id, currency, card.card_id, priced.period)
                added_pico, _ = self._commitments.charge(month, priced.published, whole_pico)
                adjustment_pico += added_pico
        return Receipt(event, tuple(parts), adjustment_pico)


def rate(batch: Batch, cards: Cards) -> Rating:
    """Rate a batch. What has no price is named and charged nothing."""
    charges = Charges(batch.log, cards.meters, cards.commitments, sums_use=False)
    rated = rate_run(
        batch.log, batch.first_position, batch.leaves, cards.currency_of, cards.catalogue, charges
    )
    charges.finish(rated.effects)
    return Rating(batch, cards, rated.effects, rated.unpriced)
