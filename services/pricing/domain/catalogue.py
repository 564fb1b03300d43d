"""Which card's line prices a leaf: cards known at a pin, in force at an instant.

Two times are kept apart. Known time is a position of the control log: a card
published at position k is known under every pin greater than k. Valid time is
the event's own: of the known versions of a card, the newest that is in force
at the event's instant applies. So a version with an end gives way, at its
end, to the version before it.

Cards that charge and cards that tell what it costs us never meet: a catalogue
is of one purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pricing.domain import hours, parents
from pricing.domain.card import (
    BASE_MODEL,
    CONTEXT_LENGTH,
    PARENT_CLASS,
    SELL,
    Card,
    Line,
    Multiplier,
)
from pricing.domain.dimensions import STANDARD_TIER, Context, LeafKey
from pricing.domain.moments import Moments, windows_at
from pricing.domain.prices import ONE, Price, most_of_one_pico, percentage_of, price_of
from pricing.domain.selection import CompiledCard, Windows, holds, is_for

BY_LINE: Final = "line"
"""Rule: a line matched the event as it is."""
BY_BASE_MODEL: Final = BASE_MODEL
"""Rule: the adapter had no line of its own, its base model's applied."""
BY_PARENT_CLASS: Final = PARENT_CLASS
"""Rule: the kind of token had no line, a plainer one's applied."""
BY_BOTH: Final = f"{BASE_MODEL}+{PARENT_CLASS}"
"""Rule: the base model's, for a plainer kind of token."""

BY_SURCHARGE: Final = "surcharge"
"""Rule: on top of the line that priced the leaf."""


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
    """The line that prices a leaf, of which card, by which rule, and at what price."""

    published: PublishedCard
    line: Line
    rule: str
    price: Price
    multipliers: tuple[str, ...] = ()
    """Ids of the factors in the price."""
    period: str = ""
    """Calendar month of the card, where its charges depend on one."""
    surcharges: tuple[Priced, ...] = ()
    """What is charged on top."""

    rule_text: str = ""
    """The rule and the factors, as postings and receipts show them."""
    most_pico: int = 0
    """The most that one more unit can add to what an account owes, before minimums."""


class _Asked(NamedTuple):
    """A leaf to price, at an instant."""

    key: LeafKey
    context: Context
    at_us: int


class Catalogue:
    """The cards of one purpose that are known at one size of the control log.

    Answers are remembered, because real traffic repeats few combinations. The
    memory is bounded, and only ever a memory: it never changes an answer.
    """

    _MAX_REMEMBERED: Final = 100_000

    def __init__(self, published: Sequence[PublishedCard], purpose: str = SELL) -> None:
        self._published = tuple(known for known in published if known.card.purpose == purpose)
        self._moments = Moments(known.card for known in self._published)
        # Accounts that some card names; all others see the same cards.
        self._named = {account for known in self._published for account in known.card.accounts}
        self._bounds = sorted(
            {
                bound
                for known in self._published
                for line in known.card.lines
                if line.tiers is not None and line.tiers.by == CONTEXT_LENGTH
                for bound in line.tiers.bounds()
            }
        )
        self._in_force: dict[tuple[str, str, int], tuple[PublishedCard, ...]] = {}
        self._found: dict[tuple[str, str, int, Context, LeafKey], Priced | None] = {}
        self.remembered: dict[type, object] = {}
        """What others make of its answers, by the kind of it, to have it as long as these hold."""

    @property
    def published(self) -> Sequence[PublishedCard]:
        """Every version, in the order of the control log."""
        return self._published

    @property
    def context_bounds(self) -> Sequence[int]:
        """Context lengths, in order, from which on some line has another price."""
        return self._bounds

    def segment(self, event_time_us: int) -> int:
        """Number of the stretch of time that an instant falls in, within which no price changes."""
        return self._moments.segment(event_time_us)

    def segments(self, times_us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The segment of each of many instants."""
        return self._moments.segments(times_us)

    def priced_as(self, account_id: str) -> str:
        """The account if some card names it; "" for all others, who have the same prices."""
        return account_id if account_id in self._named else ""

    def cards_in_force(
        self, account_id: str, currency: str, segment: int
    ) -> tuple[PublishedCard, ...]:
        """Cards that may price an account's events in a segment, the first to be asked first.

        A card that names the account goes before one for all; then the higher
        priority; then the card's id.
        """
        asked = (self.priced_as(account_id), currency, segment)
        cached = self._in_force.get(asked)
        if cached is not None:
            return cached
        at_us = self._moments.sample_us(segment)
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
        asked = (self.priced_as(account_id), currency, segment, context, key)
        if asked in self._found:
            return self._found[asked]
        cards = self.cards_in_force(account_id, currency, segment)
        answer = _find(cards, _Asked(key, context, self._moments.sample_us(segment)))
        if len(self._found) < self._MAX_REMEMBERED:
            self._found[asked] = answer
        return answer


def _find(cards: Sequence[PublishedCard], asked: _Asked) -> Priced | None:
    """The first card with a line: all as the leaf is, then by each step of their fallbacks."""
    for known in cards:
        found = _line_of(known, asked, asked.context, asked.key, BY_LINE)
        if found is not None:
            return found
    # Fallbacks of a card are tried in its order; cards with more to ask come no later for it.
    for rank in range(3):
        for known in cards:
            steps = known.card.fallback
            rules = (*steps, BY_BOTH) if len(steps) == 2 else steps
            if rank < len(rules):
                found = _fallback(known, asked, rules[rank])
                if found is not None:
                    return found
    return None


def _fallback(known: PublishedCard, asked: _Asked, rule: str) -> Priced | None:
    context = asked.context
    if rule != BY_PARENT_CLASS:
        if context.base_model == context.model and not context.adapter:
            return None
        context = context._replace(model=context.base_model, adapter="")
    if rule == BY_BASE_MODEL:
        return _line_of(known, asked, context, asked.key, rule)
    for key in parents.of(asked.key):
        found = _line_of(known, asked, context, key, rule)
        if found is not None:
            return found
    return None


def _line_of(
    known: PublishedCard, asked: _Asked, context: Context, key: LeafKey, rule: str
) -> Priced | None:
    """What a card asks for a leaf that is looked up as `key` in `context`."""
    card = known.card
    windows: Windows = frozenset()
    period = ""
    by_month = known.compiled.by_month
    if card.windows or by_month:
        local = hours.local_time(card.timezone, asked.at_us)
        windows = windows_at(card.windows, local)
        period = local.period if by_month else ""
    line = known.compiled.best_line(key, context, windows)
    if line is None and context.service_tier != STANDARD_TIER:
        standard = context._replace(service_tier=STANDARD_TIER)
        line = known.compiled.best_line(key, standard, windows)
        tier = ("service_tier", context.service_tier)
        # A factor for the tier brings the line to it; without one the tier has no price.
        if line is not None and not any(
            tier in one.match for one in _applying(card, line, asked, windows)
        ):
            return None
    if line is None:
        return None
    factors = _applying(card, line, asked, windows)
    price = price_of(line, prod((one.factor for one in factors), start=ONE))
    ids = tuple(one.multiplier_id for one in factors)
    return Priced(
        known,
        line,
        rule,
        price,
        ids,
        period,
        tuple(
            _surcharge(known, on_top, price, asked, windows, period)
            for on_top in known.compiled.surcharges(asked.key, asked.context, windows)
        ),
        "*".join((rule, *ids)),
        _most_of_meter_pico(card, line) if line.is_metered else most_of_one_pico(price),
    )


def _surcharge(
    known: PublishedCard, line: Line, base: Price, asked: _Asked, windows: Windows, period: str
) -> Priced:
    factors = _applying(known.card, line, asked, windows)
    factor = prod((one.factor for one in factors), start=ONE)
    price = percentage_of(line, base, factor) if line.percentage else price_of(line, factor)
    ids = tuple(one.multiplier_id for one in factors)
    text = "*".join((BY_SURCHARGE, *ids))
    return Priced(known, line, BY_SURCHARGE, price, ids, period, (), text, most_of_one_pico(price))


def _most_of_meter_pico(card: Card, line: Line) -> int:
    """The dearest unit of a meter: one more may move any other of the month up by a place."""
    meter = line.meter or line.line_id
    return max(
        price_of(
            other,
            prod(
                (max(one.factor, ONE) for one in (*card.multipliers, *other.multipliers)),
                start=ONE,
            ),
        ).highest_pico
        for other in card.lines
        if other.is_metered and (other.meter or other.line_id) == meter
    )


def _applying(card: Card, line: Line, asked: _Asked, windows: Windows) -> list[Multiplier]:
    """The multipliers on a line's price: the card's, but for surcharges, and the line's own."""
    shared = () if line.surcharge else card.multipliers
    return [
        one
        for one in (*shared, *line.multipliers)
        if is_for(one, line) and holds(one.match, asked.key, asked.context, windows)
    ]
