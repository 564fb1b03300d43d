"""The events that a step applied, by where they stand: named once, and only for who asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import NamedTuple

from pricing.domain.identity import identity_of


class Applied(NamedTuple):
    """An accepted usage event that was applied: what an index and a trace need of it."""

    position: int
    account_id: str
    event_id: str
    trace_id: bytes
    span_id: bytes


MakeApplied = Callable[[], Iterable[Applied]]
MakePlaces = Callable[[], Iterable[tuple[int, bytes]]]


class Applications:
    """Events that were applied, in order of position; made when somebody looks at them."""

    def __init__(self) -> None:
        self._count = 0
        self._made: list[Applied] = []
        self._to_make: list[tuple[MakeApplied, MakePlaces]] = []
        self._places: list[tuple[int, bytes]] = []

    def append(self, applied: Applied) -> None:
        """Add one."""
        self._count += 1
        self._made.append(applied)

    def add(self, count: int, make: MakeApplied, make_places: MakePlaces) -> None:
        """Add so many, to be made later: whole, or no more than their places."""
        self._count += count
        self._to_make.append((make, make_places))

    def places(self) -> Sequence[tuple[int, bytes]]:
        """(position, identity) of each, in no order: a third of the work of making them.

        Made once, and again only when events were added: each is a digest, and a step asks twice.
        """
        if len(self._places) != self._count:
            self._places = [
                (applied.position, identity_of(applied.account_id, applied.event_id))
                for applied in self._made
            ]
            for _, make_places in self._to_make:
                self._places += make_places()
        return self._places

    def some(self, limit: int) -> Iterator[Applied]:
        """So many of them at the most, in no order, without making the others."""
        lazy = (applied for make, _ in self._to_make for applied in make())
        return islice(chain(self._made, lazy), limit)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Applied]:
        if self._to_make:
            for make, _ in self._to_make:
                self._made += make()
            self._to_make = []
            self._made.sort(key=itemgetter(0))
        return iter(self._made)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Applications) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
