"""Rating usage that is in no log: cards as texts, lines of a file, in the file's order. Pure.

The cards of a folder count as published in the order of their file names, all
known; versions of one card are numbered 1, 2, 3, ... in that order. What a
month decides (included units, tiers by monthly volume, the most of a
commitment) is counted over the lines that came before: a line's amount is what
it adds to its month, so the amounts of a file sum to what its months cost. The
least of a commitment is owed when a month is closed, and no file closes one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from pricing.domain.card import SELL, Card, content_hash
from pricing.domain.card_ties import ties
from pricing.domain.catalogue import Catalogue, Priced, PublishedCard, published_card
from pricing.domain.dimensions import Context, LeafKey
from pricing.domain.events import Event, EventLeaf
from pricing.domain.imports.model_names import ModelNames
from pricing.domain.meters import Commitments, Meters, MonthKey, meter_of
from pricing.domain.outcomes import charged_quantity
from pricing.domain.prices import charge_pico
from pricing.domain.rating import RatedLeaf, outcome_word, rate_event
from pricing.domain.readers.reading import (
    MISSING_FIELD,
    OUT_OF_RANGE,
    UsageReadError,
    other_key,
)
from pricing.domain.readers.usage_line import UsageLine

MAX_MONTHS: Final = 1_000_000
"""Months of accounts that are counted in one run, at the most."""

_MAX_PLANS: Final = 50_000
_REQUEST: Final = EventLeaf(other_key("request"), 1, 0)
_NO_NAMES: Final = ModelNames(())


class RatedLine(NamedTuple):
    """A rated line. `commitment_pico` is what a card's most takes off, 0 or less."""

    context: Context
    """As priced: the model under the name that the cards have."""
    at_us: int
    leaves: tuple[RatedLeaf, ...]
    commitment_pico: int
    amount_pico: int
    unpriced: int
    """Leaves that no line prices: they are not in the amount, and never free."""


class _Plan(NamedTuple):
    """What prices a line of one shape: same names, tier, outcome, segment and kinds of leaves.

    Real traffic has few shapes, so almost every line costs a few multiplications.
    """

    context: Context
    keys: tuple[LeafKey, ...]
    """Of the line's leaves: held here, so that no other key can have the identity of one."""
    leaves: tuple[tuple[str, tuple[tuple[Priced, int], ...]], ...]
    """Of each leaf its outcome rule, and what it is charged by; none: no price.

    The number is the price of one unit, where a count of units costs so much each
    whatever the request; else -1.
    """
    has_request: bool
    has_tiers: bool
    is_plain: bool
    """Whether a leaf costs what it costs, whatever the others are and the month was."""


class OfflineRater:
    """Rates lines one after the other."""

    def __init__(
        self,
        cards: Sequence[Card],
        currency: str,
        names: ModelNames | None = None,
        as_of_us: int | None = None,
        purpose: str = SELL,
    ) -> None:
        self._catalogue = Catalogue(_published(cards), purpose)
        self._currency = currency
        self._names = names or _NO_NAMES
        self._as_of_us = as_of_us
        self._models = {
            word
            for card in cards
            if card.purpose == purpose
            for line in card.lines
            for name, word in line.match
            if name == "model"
        }
        self._meters = Meters()
        self._commitments = Commitments()
        self._plans: dict[tuple[object, ...], _Plan] = {}

    def rate(self, line: UsageLine) -> RatedLine:
        """Rate a line. Errors: UsageReadError when it does not say when it was."""
        at_us = line.at_us if self._as_of_us is None else self._as_of_us
        if at_us is None:
            raise UsageReadError(
                "time", MISSING_FIELD, "no time, no created, and no instant to rate all lines as of"
            )
        plan = self._plan(line, self._catalogue.segment(at_us))
        if not plan.is_plain:
            return self._rate_by_the_month(line, at_us, plan)
        leaves = (*line.leaves, _REQUEST) if plan.has_request else line.leaves
        length = context_units(leaves) if plan.has_tiers else 0
        rated: list[RatedLeaf] = []
        unpriced = amount_pico = 0
        for index, (leaf, (rule, chain)) in enumerate(zip(leaves, plan.leaves, strict=True)):
            if not chain:
                unpriced += 1
                rated.append(RatedLeaf(leaf, 0, "", None, 0, index))
            charged = charged_quantity(leaf.amount, leaf.undelivered, rule)
            for priced, unit_pico in chain:
                if unit_pico >= 0:
                    cost_pico = charged * unit_pico
                else:
                    cost_pico = charge_pico(priced.price, charged, length, 0)
                amount_pico += cost_pico
                rated.append(RatedLeaf(leaf, charged, rule, priced, cost_pico, index))
        return RatedLine(plan.context, at_us, tuple(rated), 0, amount_pico, unpriced)

    def _plan(self, line: UsageLine, segment: int) -> _Plan:
        keys = [leaf.key for leaf in line.leaves]
        asked = (
            line.account_id,
            line.provider,
            line.context,
            line.outcome,
            segment,
            line.is_request,
            # By identity: readers give the same key again, and comparing it costs more than a
            # multiplication. A key that is another object is only another plan.
            *map(id, keys),
        )
        plan = self._plans.get(asked)
        if plan is None:
            plan = self._make_plan(line, segment)
            if len(self._plans) < _MAX_PLANS:
                self._plans[asked] = plan
        return plan

    def _make_plan(self, line: UsageLine, segment: int) -> _Plan:
        context = self._as_in_cards(line)
        has_request = line.is_request and self._price(line, context, segment, _REQUEST) is not None
        leaves: list[tuple[str, tuple[tuple[Priced, int], ...]]] = []
        is_plain, has_tiers = True, False
        for leaf in (*line.leaves, _REQUEST) if has_request else line.leaves:
            priced = self._price(line, context, segment, leaf)
            if priced is None:
                leaves.append(("", ()))
                continue
            chain = (priced, *priced.surcharges)
            rule = priced.published.card.outcome_rule(outcome_word(line.outcome))
            leaves.append((rule, tuple((one, _even_pico(one)) for one in chain)))
            for one in chain:
                has_tiers = has_tiers or one.line.tiers is not None
                if one.period or one.price.is_metered or one.price.is_graduated:
                    is_plain = False
        keys = tuple(leaf.key for leaf in line.leaves)
        return _Plan(context, keys, tuple(leaves), has_request, has_tiers, is_plain)

    def _price(
        self, line: UsageLine, context: Context, segment: int, leaf: EventLeaf
    ) -> Priced | None:
        return self._catalogue.price(line.account_id, self._currency, segment, context, leaf.key)

    def _rate_by_the_month(self, line: UsageLine, at_us: int, plan: _Plan) -> RatedLine:
        leaves = (*line.leaves, _REQUEST) if plan.has_request else line.leaves
        event = Event(
            0, line.line_id, line.account_id, plan.context, line.outcome, at_us, leaves, ""
        )
        rated, commitment_pico = self._count_month(
            line.account_id, rate_event(event, self._currency, self._catalogue)
        )
        return RatedLine(
            plan.context,
            at_us,
            rated,
            commitment_pico,
            sum(leaf.amount_pico for leaf in rated) + commitment_pico,
            sum(leaf.priced is None for leaf in rated),
        )

    def _as_in_cards(self, line: UsageLine) -> Context:
        """The context with the model under the name that the cards have, if they have one.

        Our own events name the model that was served, and no other.
        """
        context = line.context
        if not line.is_request:
            return context
        model = self._model(line.provider, context.model)
        if model == context.model:
            return context
        base = context.base_model
        base = model if base == context.model else self._model(line.provider, base)
        return context._replace(model=model, base_model=base)

    def _model(self, provider: str, model: str) -> str:
        named = f"{provider}/{model}" if provider else model
        if named in self._models:
            return named
        return self._names.card_model(provider, model) or model

    def _count_month(
        self, account_id: str, rated: tuple[RatedLeaf, ...]
    ) -> tuple[tuple[RatedLeaf, ...], int]:
        """Count what counts for a month; metered leaves get what they add to it."""
        counted: list[RatedLeaf] = []
        commitment_pico = 0
        for given in rated:
            leaf = given
            if leaf.priced is not None and leaf.priced.price.is_metered:
                key, layer = meter_of(account_id, self._currency, leaf.priced)
                changes = self._meters.add(key, {layer: (leaf.charged, leaf.priced)})
                leaf = leaf._replace(amount_pico=sum(change.amount_pico for change in changes))
            counted.append(leaf)
            if leaf.priced is not None and leaf.priced.published.card.commitment is not None:
                known = leaf.priced.published
                month = MonthKey(account_id, self._currency, known.card.card_id, leaf.priced.period)
                commitment_pico += self._commitments.charge(month, known, leaf.amount_pico)[0]
        if len(self._meters.counts) + len(self._commitments.months) > MAX_MONTHS:
            raise UsageReadError(
                "account", OUT_OF_RANGE, f"more than {MAX_MONTHS} months of accounts in one run"
            )
        return tuple(counted), commitment_pico


def currencies(cards: Iterable[Card]) -> list[str]:
    """The currencies of cards, in order."""
    return sorted({card.currency for card in cards})


def tied(cards: Sequence[Card]) -> str | None:
    """What two cards both price, and nothing says which of them goes first; None where all is said.

    A service refuses such a card when it is proposed; a folder is asked as a whole.
    """
    entries = _published(cards)
    for known in entries:
        for tie in ties(known.card, entries, 0):
            return f"card {known.card.card_id!r}: {tie.words}"
    return None


def context_units(leaves: Iterable[EventLeaf]) -> int:
    """Length of a request's context: every token of its prompt, cached or not."""
    return sum(
        [leaf.amount for leaf in leaves if leaf.key.unit == "token" and leaf.key.direction == "in"]
    )


def _even_pico(priced: Priced) -> int:
    """Price of each unit where it is the same for all of every request; else -1."""
    if priced.line.tiers is None and priced.price.is_even:
        return priced.price.unit_pico
    return -1


def _published(cards: Sequence[Card]) -> list[PublishedCard]:
    versions: dict[str, int] = {}
    found: list[PublishedCard] = []
    for position, card in enumerate(cards):
        versions[card.card_id] = versions.get(card.card_id, 0) + 1
        digest = content_hash(card.document())
        found.append(published_card(position, card, versions[card.card_id], digest))
    return found
