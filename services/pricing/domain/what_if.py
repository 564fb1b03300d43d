"""The log's usage rated by other prices than those of its pins: what would be charged. Pure.

An assumption is a control state of which the catalogue alone is another:
accounts, pins and what waits stay as they are. Two folds of the same usage,
one by what was, one by what is assumed, differ exactly in what the assumption
changes; that difference is what a preview shows and a re-rating posts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from pricing.domain import books
from pricing.domain.card import Card, content_hash
from pricing.domain.catalogue import Catalogue, Priced, PublishedCard, published_card
from pricing.domain.control import ControlState
from pricing.domain.dimensions import Context, LeafKey
from pricing.domain.events import Event
from pricing.domain.projection import Projection
from pricing.domain.rerating import Plan, replaced
from tollbook.pricing.v1 import card_records_pb2 as records
from tollbook.pricing.v1 import money_pb2

Entries = Callable[[int], Sequence[PublishedCard]]
"""What the catalogue holds at a control size."""

DRAFT_VERSION: Final = 2**31 - 1
_MODEL_MARK: Final = "\x1f"
"""Before the model, where a posting's rule carries it; no name of a factor has it."""
_KEPT_CATALOGUES: Final = 64


class NamingCatalogue(Catalogue):
    """A catalogue that notes the lines it was asked for, and names the model in each rule.

    So that charges, which are folded by line and rule, are told apart by model too.
    """

    def __init__(self, published: Sequence[PublishedCard]) -> None:
        super().__init__(published)
        self.used: set[tuple[str, int, str]] = set()
        self._with_model: dict[int, tuple[Priced, Priced]] = {}

    def price(
        self, account_id: str, currency: str, segment: int, context: Context, key: LeafKey
    ) -> Priced | None:
        """As the catalogue's own, with the model at the end of the rule."""
        found = super().price(account_id, currency, segment, context, key)
        if found is None:
            return None
        # By identity, since most answers are remembered ones; held, so that none is another's.
        known, named = self._with_model.get(id(found), (None, found))
        if known is not found:
            named = self._name(found, f"{_MODEL_MARK}{context.model}")
            if len(self._with_model) < self._MAX_REMEMBERED:
                self._with_model[id(found)] = found, named
        return named

    def _name(self, found: Priced, mark: str) -> Priced:
        for one in (found, *found.surcharges):
            known = one.published
            self.used.add((known.card.card_id, known.version, one.line.line_id))
        return found._replace(
            rule_text=f"{found.rule_text}{mark}",
            surcharges=tuple(
                one._replace(rule_text=f"{one.rule_text}{mark}") for one in found.surcharges
            ),
        )


class Assumption(ControlState):
    """A control state up to a size, with another catalogue.

    It is for rating by, not for applying records to.
    """

    def __init__(
        self,
        base: ControlState,
        control_size: int,
        entries: Entries,
        make: Callable[[Sequence[PublishedCard]], Catalogue] = Catalogue,
    ) -> None:
        super().__init__()
        self.size = control_size
        self.accounts = base.accounts
        self.cards = base.cards
        self.operators = base.operators
        self.reratings = base.reratings
        known = bisect_left(base.price_changes, control_size)
        self.price_changes = base.price_changes[:known]
        self._assumed = entries
        self._make = make
        self._made: dict[int, Catalogue] = {}

    def entries(self, control_size: int) -> Sequence[PublishedCard]:
        """What is assumed to be known at a control size."""
        return self._assumed(control_size)

    def catalogue(self, control_size: int) -> Catalogue:
        """The cards assumed to be known at a pin."""
        known = self.cards.changes(control_size)
        catalogue = self._made.get(known)
        if catalogue is None:
            if len(self._made) >= _KEPT_CATALOGUES:
                del self._made[next(iter(self._made))]
            catalogue = self._made[known] = self._make(self._assumed(control_size))
        return catalogue


def fold_by(state: ControlState) -> Projection:
    """A fold that rates by a state and changes nothing of it."""
    return Projection(sums_use=False, control=state, bills=False)


def as_charged(
    state: ControlState,
    control_size: int,
    make: Callable[[Sequence[PublishedCard]], Catalogue] = Catalogue,
) -> Assumption:
    """What usage is charged as known at a control size: by its pins, and as it was set right."""
    plans = state.reratings.posted_before(control_size)
    return Assumption(state, control_size, _corrected(state, plans), make)


def as_planned(state: ControlState, plan: records.ReratePlanned) -> Assumption:
    """What usage would be charged once a plan is posted."""
    before = state.reratings.posted_before(plan.control_size)
    return Assumption(state, plan.control_size, _corrected(state, [*before, Plan(0, plan)]))


def _corrected(state: ControlState, plans: Sequence[Plan]) -> Entries:
    def entries(control_size: int) -> Sequence[PublishedCard]:
        known: Sequence[PublishedCard] = state.cards.entries(control_size)
        for plan in plans:
            right = state.cards.entries(plan.made.control_size)
            known = replaced(known, plan.made.card_id, right, plan.from_us, plan.to_us)
        return known

    return entries


def with_draft(
    state: ControlState,
    control_size: int,
    draft: Card,
    make: Callable[[Sequence[PublishedCard]], Catalogue] = Catalogue,
) -> Assumption:
    """What usage would be charged had a draft been in force all along, and no other version."""
    card = replace(draft, effective_from_us=0, effective_to_us=None)
    entry = published_card(0, card, DRAFT_VERSION, content_hash(draft.document()))
    charged = _corrected(state, state.reratings.posted_before(control_size))

    def entries(control_size: int) -> Sequence[PublishedCard]:
        others = [known for known in charged(control_size) if known.card.card_id != card.card_id]
        return [*others, entry]

    return Assumption(state, control_size, entries, make)


class ChargeKey(NamedTuple):
    """What charges are told apart by."""

    log: str
    account_id: str
    currency: str
    card_id: str
    version: int
    content_hash: bytes
    line_id: str
    model: str
    """Empty unless the catalogue names it."""


@dataclass(slots=True)
class ChargeSum:
    """Charges of one key: amounts in pico-units, units, and the positions they come from."""

    before_pico: int = 0
    after_pico: int = 0
    quantity: int = 0
    """Units after, less units before."""
    first: int = 2**63 - 1
    end: int = 0


class Difference:
    """Charges before and after, by account and line."""

    def __init__(self) -> None:
        self.sums: dict[ChargeKey, ChargeSum] = {}

    def add_before(self, postings: Iterable[books.Posting]) -> None:
        """Add what was charged."""
        for key, amount_pico, posting in _charges(postings):
            found = self._of(key, posting)
            found.before_pico += amount_pico
            found.quantity -= posting.quantity

    def add_after(self, postings: Iterable[books.Posting]) -> None:
        """Add what would be charged."""
        for key, amount_pico, posting in _charges(postings):
            found = self._of(key, posting)
            found.after_pico += amount_pico
            found.quantity += posting.quantity

    def _of(self, key: ChargeKey, posting: books.Posting) -> ChargeSum:
        found = self.sums.setdefault(key, ChargeSum())
        found.first = min(found.first, posting.from_position)
        found.end = max(found.end, posting.to_position)
        return found

    def corrections(self) -> list[records.Correction]:
        """What sets right what was charged, in an order that depends on the charges alone."""
        return [
            records.Correction(
                log=key.log,
                from_position=found.first,
                to_position=found.end,
                account_id=key.account_id,
                card_id=key.card_id,
                version=key.version,
                content_hash=key.content_hash,
                line_id=key.line_id,
                quantity=found.quantity,
                amount=money_pb2.Amount(
                    currency=key.currency, amount_pico=str(found.after_pico - found.before_pico)
                ),
            )
            for key, found in sorted(self.sums.items())
            if found.after_pico != found.before_pico
        ]


def _charges(
    postings: Iterable[books.Posting],
) -> Iterator[tuple[ChargeKey, int, books.Posting]]:
    """Charges among postings, each with its key and its amount as the account sees it."""
    prefix = books.customer("")
    for posting in postings:
        if not posting.card_id:
            continue
        paid = posting.debit.startswith(prefix)
        side = posting.debit if paid else posting.credit
        key = ChargeKey(
            posting.log,
            side.removeprefix(prefix),
            posting.currency,
            posting.card_id,
            posting.card_version,
            posting.card_hash,
            posting.line_id,
            posting.rule.partition(_MODEL_MARK)[2],
        )
        yield key, posting.amount_pico if paid else -posting.amount_pico, posting


class Rerating:
    """The usage of the logs rated twice: as it was charged, and as a plan would have it."""

    def __init__(self, state: ControlState, plan: records.ReratePlanned) -> None:
        self.difference = Difference()
        self._before = fold_by(as_charged(state, plan.control_size))
        self._after = fold_by(as_planned(state, plan))

    def add(self, log: str, first_position: int, pin: int, data: Sequence[bytes]) -> None:
        """Rate a run of leaves that share a pin, from the next position of its log on."""
        before = self._before.apply_usage(log, first_position, pin, data)
        after = self._after.apply_usage(log, first_position, pin, data)
        self.difference.add_before(before.postings)
        self.difference.add_after(after.postings)

    def newly_unpriced(self) -> int:
        """How many events have a leaf with a price that would have none."""
        before = self._before.suspense
        return sum(
            1
            for place, entry in self._after.suspense.items()
            if place not in before or len(entry.waiting) > len(before[place].waiting)
        )


class Corrections:
    """What re-ratings made of single events: for receipts."""

    _MAX_KEPT: Final = 16

    def __init__(self, state: ControlState) -> None:
        self._state = state
        self._folds: dict[str, Projection] = {}

    def of(self, log: str, event: Event, pin: int) -> Iterator[tuple[Plan, int]]:
        """(re-rating, what the event costs by it) of each that covers the event, in order."""
        for plan in self._state.reratings.posted:
            if plan.covers(log, event.position, event.event_time_us):
                rated = self._fold(plan).receipt(event, pin)
                yield plan, sum(part.amount_pico for part, _ in rated)

    def _fold(self, plan: Plan) -> Projection:
        fold = self._folds.pop(plan.made.rerate_id, None)
        if fold is None:
            fold = fold_by(as_planned(self._state, plan.made))
        self._folds[plan.made.rerate_id] = fold
        if len(self._folds) > self._MAX_KEPT:
            del self._folds[next(iter(self._folds))]
        return fold
