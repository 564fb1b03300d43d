"""Which line of a card prices a leaf.

Of the lines that match, the one with the highest `priority` wins, then the
one that names more dimensions. What a line leaves out it does not ask about,
with one exception made when the card is read: a line that names no
service_tier is for the standard tier, so that a dearer tier is never priced
as the standard one by an oversight (`service_tier: any` is for all). A
multiplier that names a tier brings the standard tier's lines to that tier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from operator import attrgetter
from typing import Final

from pricing.domain import hours
from pricing.domain.card import WILD, Card, Line, Match, Multiplier
from pricing.domain.dimensions import (
    CONTEXT_FIELDS,
    STANDARD_TIER,
    TIME_WINDOW,
    WILD_FIELDS,
    Context,
    LeafKey,
)
from pricing.domain.moments import needs_months

Windows = frozenset[str]
"""Names of the card's time windows that hold an instant."""
Apart = frozenset[tuple[str, str]]
"""Pairs of a card's time windows that no instant is in at once."""


def holds(match: Match, key: LeafKey, context: Context, windows: Windows) -> bool:
    """Tell whether everything that a match asks for is so."""
    for name, word in match:
        if name == TIME_WINDOW:
            if word not in windows:
                return False
            continue
        actual: str = getattr(context if name in CONTEXT_FIELDS else key, name)
        if actual != word and not (word == WILD and actual and name in WILD_FIELDS):
            return False
    return True


def matches(line: Line, key: LeafKey, context: Context, windows: Windows = frozenset()) -> bool:
    """Tell whether a line prices a leaf in a context."""
    return line.unit == key.unit and holds(line.match, key, context, windows)


class CompiledCard:
    """A card's lines by unit and model, so that few are asked about a leaf."""

    __slots__ = ("_by_place", "_surcharges", "by_month")

    def __init__(self, card: Card) -> None:
        # Kept, for it asks every line, and is asked about each leaf that is new.
        self.by_month = needs_months(card)
        self._by_place: dict[tuple[str, str | None], list[Line]] = {}
        self._surcharges = tuple(line for line in card.lines if line.surcharge)
        for line in sorted(card.lines, key=attrgetter("specificity"), reverse=True):
            if not line.surcharge:
                place = (line.unit, dict(line.match).get("model"))
                self._by_place.setdefault(place, []).append(line)

    def best_line(
        self, key: LeafKey, context: Context, windows: Windows = frozenset()
    ) -> Line | None:
        """The line that prices a leaf, or None."""
        best: Line | None = None
        for place in ((key.unit, context.model), (key.unit, None)):
            for line in self._by_place.get(place, ()):
                if best is not None and best.specificity >= line.specificity:
                    break
                if matches(line, key, context, windows):
                    best = line
                    break
        return best

    def surcharges(
        self, key: LeafKey, context: Context, windows: Windows = frozenset()
    ) -> tuple[Line, ...]:
        """The surcharges on a leaf, in the card's order."""
        return tuple(line for line in self._surcharges if matches(line, key, context, windows))


def windows_apart(card: Card) -> Apart:
    """Pairs of a card's time windows, in both orders, that no instant is in at once."""
    return frozenset(
        pair
        for one, other in combinations(card.windows, 2)
        if not hours.overlap(one, other)
        for pair in ((one.name, other.name), (other.name, one.name))
    )


def compatible(one: Match, other: Match, apart: Apart) -> bool:
    """Tell whether some leaf could match both."""
    mine = dict(one)
    for name, word in other:
        own = mine.get(name, word)
        if name == TIME_WINDOW:
            if (own, word) in apart:
                return False
        elif own != word and not (WILD in (own, word) and own and word and name in WILD_FIELDS):
            return False
    return True


# What a line names itself, no multiplier changes: that is how a price is overridden.
_OWN: Final = frozenset({"service_tier", "adapter", "region", TIME_WINDOW})
_STANDARD: Final = ("service_tier", STANDARD_TIER)


def is_for(multiplier: Multiplier, line: Line) -> bool:
    """Tell whether a multiplier may change a line's price: not in what the line names itself."""
    named = {pair[0] for pair in line.match if pair != _STANDARD}
    return not any(name in _OWN and name in named for name, _ in multiplier.match)


def may_apply(multiplier: Multiplier, line: Line, apart: Apart) -> bool:
    """Tell whether a multiplier could apply to some leaf that a line prices."""
    open_match = tuple(pair for pair in line.match if pair != _STANDARD)
    return is_for(multiplier, line) and compatible(open_match, multiplier.match, apart)


def rivals(
    lines: Iterable[tuple[int, Line]], apart: Apart = frozenset()
) -> Iterator[tuple[int, Line, Line]]:
    """Lines that could tie on some leaf: (index, line, an earlier line it could tie with).

    Lines that differ in unit, priority or count of dimensions never tie, and
    of the rest only those with the same model or without one: a card of a
    thousand models does not cost a million comparisons. Surcharges do not
    compete.
    """
    groups: dict[tuple[str, tuple[int, int, int]], dict[str | None, list[Line]]] = {}
    for index, line in lines:
        if line.surcharge:
            continue
        by_model = groups.setdefault((line.unit, line.specificity), {})
        model = dict(line.match).get("model")
        if model is None:
            earlier = [rival for group in by_model.values() for rival in group]
        else:
            earlier = [*by_model.get(model, ()), *by_model.get(None, ())]
        for rival in earlier:
            if compatible(line.match, rival.match, apart):
                yield index, line, rival
                break
        by_model.setdefault(model, []).append(line)
