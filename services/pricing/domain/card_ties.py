"""Cards that tie: two for the same accounts, of one priority, that price the same leaf at one time.

Which of them charges would be decided by their ids, which nobody chose for
that. So it is an error of whoever would put the second in force, and not found
out on a bill. Pure.

Each leaf that a line of either card is for is looked at, and each that a line
of one and a line of the other are for together; at the instants at which a card
begins or ends, and those of the week from there on at which hours begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from typing import Final, NamedTuple

from pricing.domain import hours
from pricing.domain.card import Card, Line
from pricing.domain.card_samples import (
    Sample,
    priced_sample,
    sample_of,
    sample_of_both,
    words_of,
)
from pricing.domain.catalogue import BY_LINE, Catalogue, PublishedCard, published_card
from pricing.domain.dimensions import STANDARD_TIER
from pricing.domain.line_pairs import meeting

_MAX_ACCOUNTS: Final = 64
_MAX_INSTANTS: Final = 64
_MAX_TIES: Final = 100
# Of lines of which neither names all that the other does: of two imports of all models there are
# none, of a line for no model in particular as many as there are models.
_MAX_PAIRS: Final = 200_000

_STANDARD: Final = ("service_tier", STANDARD_TIER)

_Candidate = tuple[Line | None, Sample]
"""A leaf to look at, and the draft's line that it is of; None: whichever prices it."""


class Tie(NamedTuple):
    """A line of a draft and the line of another card that it ties with."""

    line_id: str
    words: str
    """For people."""


def ties(draft: Card, entries: Sequence[PublishedCard], now_us: int) -> Iterator[Tie]:
    """Lines of a draft that tie with cards in force, now or once both are."""
    others = [
        known
        for known in entries
        if known.card.card_id != draft.card_id and known.card.is_beside(draft)
    ]
    if any(_rivals(known.card, draft) for known in others):
        yield from islice(_found(draft, others, now_us), _MAX_TIES)


def _rivals(card: Card, draft: Card) -> bool:
    """Whether nothing says which of two cards is asked first."""
    return card.priority == draft.priority and bool(card.accounts) == bool(draft.accounts)


def _found(draft: Card, others: Sequence[PublishedCard], now_us: int) -> Iterator[Tie]:
    own = Catalogue([published_card(0, draft, 0, b"")], draft.purpose)
    catalogue = Catalogue(others, draft.purpose)
    both = {name for known in others for name in known.card.accounts} & set(draft.accounts)
    accounts = sorted(both)[:_MAX_ACCOUNTS] if draft.accounts else [""]
    instants = _instants(draft, others, now_us, (own, catalogue))
    told: set[str] = set()
    for wanted, sample in _candidates(draft, [known.card for known in others]):
        if wanted is not None and wanted.line_id in told:
            continue
        for at_us, account_id in product(instants, accounts):
            mine = priced_sample(own, draft, sample, at_us, account_id)
            if mine is None or mine.rule != BY_LINE or mine.line.line_id in told:
                continue
            other = priced_sample(catalogue, draft, sample, at_us, account_id)
            # Another that goes before both decides, and there is no doubt; nor is there where one
            # of them comes to the leaf by a fallback alone, since lines of all cards go before.
            if other is not None and other.rule == BY_LINE and _rivals(other.published.card, draft):
                whose = f" for account {account_id!r}" if account_id else ""
                told.add(mine.line.line_id)
                yield Tie(
                    mine.line.line_id,
                    f"line {mine.line.line_id!r} and card {other.published.card.card_id!r} line"
                    f" {other.line.line_id!r} both price {words_of(sample)}{whose}, and nothing"
                    " says which goes first: set 'priority', or retire the other from then on",
                )
                break


def _candidates(draft: Card, others: Sequence[Card]) -> Iterator[_Candidate]:
    """Leaves that the draft and another card may both price.

    A surcharge is charged on top of whatever line prices a leaf, and prices none.
    """
    own = list(_lines(draft))
    lines = (line for card in others if _rivals(card, draft) for line in _lines(card))
    # Each once: the versions of a card have mostly the same lines.
    rivals = {(line.unit, line.match): line for line in lines}.values()
    named = _Named(line for card in others for line in card.lines)
    for line in own:
        if named.may_price(sample := sample_of(line)):
            yield line, sample
    named = _Named(own)
    # A draft's line may be the wider one.
    for sample in dict.fromkeys(sample_of(line) for line in rivals):
        if named.may_price(sample):
            yield None, sample
    # Or each asks for something that the other does not.
    for line, rival in islice(meeting(own, rivals), _MAX_PAIRS):
        both = sample_of_both(line, rival)
        if both is not None and both not in (sample_of(line), sample_of(rival)):
            yield line, both


def _lines(card: Card) -> Iterator[Line]:
    """What prices leaves, and each line once more for every tier that a factor brings it to."""
    for line in card.lines:
        if line.surcharge:
            continue
        yield line
        if _STANDARD in line.match:
            factors = (*card.multipliers, *line.multipliers)
            tiers = {pair for one in factors for pair in one.match if pair[0] == _STANDARD[0]}
            for tier in sorted(tiers - {_STANDARD}):
                match = (tier if pair == _STANDARD else pair for pair in line.match)
                yield replace(line, match=tuple(match))


class _Named:
    """What lines are for, by names alone: most lines are told apart by them."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._models: set[str] = set()
        self._units: set[str] = set()
        """Of lines that are for any model."""
        for line in lines:
            words = [word for name, word in line.match if name in ("model", "base_model")]
            self._models.update(words)
            if not words:
                self._units.add(line.unit)

    def may_price(self, sample: Sample) -> bool:
        """Tell whether a line may price a sample."""
        context, key = sample
        names = {context.model, context.base_model}
        return key.unit in self._units or not names.isdisjoint(self._models)


def _instants(
    draft: Card, others: Sequence[PublishedCard], now_us: int, catalogues: Sequence[Catalogue]
) -> list[int]:
    """When a draft begins to apply, and when another card or hours begin or end while it does."""
    first_us = max(now_us, draft.effective_from_us)
    changes = {first_us} | {known.card.effective_from_us for known in others}
    # What goes before both hides a tie until it ends.
    changes.update(
        known.card.effective_to_us for known in others if known.card.effective_to_us is not None
    )
    cards = [draft, *(known.card for known in others)]
    starts = {
        (card.timezone, span[0])
        for card in cards
        for window in card.windows
        for span in hours.spans(window)
    }
    found: dict[tuple[int, ...], int] = {}
    for change_us in sorted(at_us for at_us in changes if at_us >= first_us):
        at_starts = sorted(hours.next_us(zone, start_s, change_us) for zone, start_s in starts)
        for at_us in (change_us, *at_starts):
            if draft.effective_to_us is None or at_us < draft.effective_to_us:
                # Within a segment nothing changes that selects a price.
                segments = tuple(catalogue.segment(at_us) for catalogue in catalogues)
                found.setdefault(segments, at_us)
        if len(found) >= _MAX_INSTANTS:
            break
    return list(found.values())[:_MAX_INSTANTS]
