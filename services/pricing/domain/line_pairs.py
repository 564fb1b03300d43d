"""Lines of two cards that could match one leaf, found without comparing each with each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pricing.domain.card import Line, Match
from pricing.domain.dimensions import TIME_WINDOW, WILD_FIELDS

_INEXACT: Final = WILD_FIELDS | {TIME_WINDOW}
"""What two lines may name differently and still meet: any adapter, or hours that overlap."""

_Words = tuple[str | None, ...]


def meeting(lines: Iterable[Line], others: Iterable[Line]) -> Iterator[tuple[Line, Line]]:
    """Pairs of one of `lines` and one of `others` that say nothing different of what both name.

    But for what may be named differently (adapter, region, attribute, hours): that is the caller's
    to compare. A thousand models beside a thousand are a thousand pairs, not a million.
    """
    groups: dict[tuple[str, frozenset[str]], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.unit, _names(line.match)), []).append(line)
    indexes: dict[tuple[str, frozenset[str], tuple[str, ...]], dict[_Words, list[Line]]] = {}
    for other in others:
        words = dict(other.match)
        names = _names(other.match)
        for (unit, own_names), group in groups.items():
            if unit != other.unit:
                continue
            shared = tuple(sorted(names & own_names))
            index = indexes.get((unit, own_names, shared))
            if index is None:
                index = indexes[unit, own_names, shared] = _by_words(group, shared)
            for line in index.get(tuple(words.get(name) for name in shared), ()):
                yield line, other


def _names(match: Match) -> frozenset[str]:
    return frozenset(name for name, _ in match if name not in _INEXACT)


def _by_words(lines: Iterable[Line], names: tuple[str, ...]) -> dict[_Words, list[Line]]:
    found: dict[_Words, list[Line]] = {}
    for line in lines:
        words = dict(line.match)
        found.setdefault(tuple(words.get(name) for name in names), []).append(line)
    return found
