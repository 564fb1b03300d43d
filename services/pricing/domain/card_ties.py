"""Cards that tie: two for the same accounts, of one priority, that price the same leaf at one time.

Which of them charges would be decided by their ids, which nobody chose for
that. So it is an error of whoever would put the second in force, and not found
out on a bill. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import Final, NamedTuple

from pricing.domain.card import Card, Line
from pricing.domain.card_samples import Sample, priced_sample, sample_of, words_of
from pricing.domain.catalogue import BY_LINE, Catalogue, PublishedCard
from pricing.domain.selection import CompiledCard

_MAX_ACCOUNTS: Final = 64
_MAX_INSTANTS: Final = 64
_MAX_TIES: Final = 100


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
        if known.card.card_id != draft.card_id
        and known.card.purpose == draft.purpose
        and known.card.currency == draft.currency
    ]
    if any(_rivals(known.card, draft) for known in others):
        yield from islice(_found(draft, others, now_us), _MAX_TIES)


def _rivals(card: Card, draft: Card) -> bool:
    """Whether nothing says which of two cards is asked first."""
    return card.priority == draft.priority and bool(card.accounts) == bool(draft.accounts)


def _found(draft: Card, others: Sequence[PublishedCard], now_us: int) -> Iterator[Tie]:
    candidates = [*_of_draft(draft, others), *_of_rivals(draft, others)]
    if not candidates:
        return
    catalogue = Catalogue(others, draft.purpose)
    both = {name for known in others for name in known.card.accounts} & set(draft.accounts)
    accounts = sorted(both)[:_MAX_ACCOUNTS] if draft.accounts else [""]
    instants = _instants(draft, others, now_us)
    told: set[str] = set()
    for line, sample in candidates:
        if line.line_id in told:
            continue
        for at_us, account_id in product(instants, accounts):
            other = priced_sample(catalogue, draft, sample, at_us, account_id)
            # Another that goes before both decides, and there is no doubt; nor is there where the
            # other comes to the leaf by a fallback alone, since lines of all cards go before.
            if other is not None and other.rule == BY_LINE and _rivals(other.published.card, draft):
                whose = f" for account {account_id!r}" if account_id else ""
                told.add(line.line_id)
                yield Tie(
                    line.line_id,
                    f"line {line.line_id!r} and card {other.published.card.card_id!r} line"
                    f" {other.line.line_id!r} both price {words_of(sample)}{whose}, and nothing"
                    " says which goes first: set 'priority', or retire the other from then on",
                )
                break


def _of_draft(draft: Card, others: Sequence[PublishedCard]) -> Iterator[tuple[Line, Sample]]:
    """A draft's lines that another card may price, each with a leaf that it is for."""
    named = _Named(others)
    for line in draft.lines:
        # A surcharge is charged on top of whatever line prices a leaf, and prices none.
        if not line.surcharge and named.may_price(sample := sample_of(line)):
            yield line, sample


def _of_rivals(draft: Card, others: Sequence[PublishedCard]) -> Iterator[tuple[Line, Sample]]:
    """The same of leaves that lines of rivals are for: a draft's line may be the wider one."""
    own = CompiledCard(draft)
    lines = (line for known in others if _rivals(known.card, draft) for line in known.card.lines)
    # Each once: the versions of a card have mostly the same lines.
    for sample in dict.fromkeys(sample_of(line) for line in lines if not line.surcharge):
        context, key = sample
        line = own.best_line(key, context)
        if line is not None:
            yield line, sample


class _Named:
    """What cards' lines are for, by names alone: most lines are told apart by them."""

    def __init__(self, cards: Sequence[PublishedCard]) -> None:
        self._models: set[str] = set()
        self._units: set[str] = set()
        """Of lines that are for any model."""
        for line in (line for known in cards for line in known.card.lines):
            words = [word for name, word in line.match if name in ("model", "base_model")]
            self._models.update(words)
            if not words:
                self._units.add(line.unit)

    def may_price(self, sample: Sample) -> bool:
        """Tell whether a line may price a sample."""
        context, key = sample
        names = {context.model, context.base_model}
        return key.unit in self._units or not names.isdisjoint(self._models)


def _instants(draft: Card, others: Sequence[PublishedCard], now_us: int) -> list[int]:
    """When a draft begins to apply, and when another card begins or ends while it does."""
    first_us = max(now_us, draft.effective_from_us)
    changes = {known.card.effective_from_us for known in others}
    # What goes before both hides a tie until it ends.
    changes.update(
        known.card.effective_to_us for known in others if known.card.effective_to_us is not None
    )
    later = sorted(
        at_us
        for at_us in changes
        if at_us > first_us and (draft.effective_to_us is None or at_us < draft.effective_to_us)
    )
    if draft.effective_to_us is not None and draft.effective_to_us <= first_us:
        return []
    return [first_us, *later[:_MAX_INSTANTS]]
