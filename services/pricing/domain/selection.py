"""Which line of a card prices a leaf.

Of the lines that match, the one with the highest `priority` wins, then the
one that names more dimensions. What a line leaves out it does not ask about,
with one exception made when the card is read: a line that names no
service_tier is for the standard tier, so that a dearer tier is never priced
as the standard one by an oversight (`service_tier: any` is for all).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter

from pricing.domain.card import Card, Line
from pricing.domain.dimensions import Context, LeafKey


def matches(line: Line, key: LeafKey, context: Context) -> bool:
    """Tell whether a line prices a leaf in a context."""
    if line.unit != key.unit:
        return False
    for name, word in line.match:
        actual = getattr(context, name, None)
        if actual is None:
            actual = getattr(key, name)
        if actual != word:
            return False
    return True


class CompiledCard:
    """A card's lines by unit and model, so that few are asked about a leaf."""

    __slots__ = ("_by_place",)

    def __init__(self, card: Card) -> None:
        self._by_place: dict[tuple[str, str | None], list[Line]] = {}
        for line in sorted(card.lines, key=attrgetter("specificity"), reverse=True):
            place = (line.unit, dict(line.match).get("model"))
            self._by_place.setdefault(place, []).append(line)

    def best_line(self, key: LeafKey, context: Context) -> Line | None:
        """The line that prices a leaf, or None."""
        best: Line | None = None
        for place in ((key.unit, context.model), (key.unit, None)):
            for line in self._by_place.get(place, ()):
                if best is not None and best.specificity >= line.specificity:
                    break
                if matches(line, key, context):
                    best = line
                    break
        return best


def _compatible(one: Line, other: Line) -> bool:
    """Tell whether some leaf could match both."""
    mine = dict(one.match)
    return all(mine.get(name, word) == word for name, word in other.match)


def rivals(lines: Iterable[tuple[int, Line]]) -> Iterator[tuple[int, Line, Line]]:
    """Lines that could tie on some leaf: (index, line, an earlier line it could tie with).

    Lines that differ in unit, priority or count of dimensions never tie, and
    of the rest only those with the same model or without one: a card of a
    thousand models does not cost a million comparisons.
    """
    groups: dict[tuple[str, tuple[int, int]], dict[str | None, list[Line]]] = {}
    for index, line in lines:
        by_model = groups.setdefault((line.unit, line.specificity), {})
        model = dict(line.match).get("model")
        if model is None:
            earlier = [rival for group in by_model.values() for rival in group]
        else:
            earlier = [*by_model.get(model, ()), *by_model.get(None, ())]
        for rival in earlier:
            if _compatible(line, rival):
                yield index, line, rival
                break
        by_model.setdefault(model, []).append(line)
