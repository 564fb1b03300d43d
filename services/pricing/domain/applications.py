"""The events that a step applied, by where they stand: named once, and only for who asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pricing.domain.identity import IDENTITY_BYTES, identity_of


class Applied(NamedTuple):
    """An accepted usage event that was applied: what an index and a trace need of it."""

    position: int
    account_id: str
    event_id: str
    trace_id: bytes
    span_id: bytes


class Placed(NamedTuple):
    """Where events stand, in arrays: of thousands of them each object would be felt."""

    positions: npt.NDArray[np.int64]
    identities: npt.NDArray[np.uint8]
    """A row of IDENTITY_BYTES of each."""


MakeApplied = Callable[[], Iterable[Applied]]
MakePlaced = Callable[[], Iterable[Placed]]


def _placed(made: Sequence[Applied]) -> Placed:
    """Where events that are made stand."""
    digests = b"".join(identity_of(applied.account_id, applied.event_id) for applied in made)
    return Placed(
        np.fromiter((applied.position for applied in made), np.int64, len(made)),
        np.frombuffer(digests, dtype=np.uint8).reshape(len(made), IDENTITY_BYTES),
    )


_NOTHING: Final = _placed(())


class Applications:
    """Events that were applied, in order of position; made when somebody looks at them."""

    def __init__(self) -> None:
        self._count = 0
        self._made: list[Applied] = []
        self._to_make: list[tuple[MakeApplied, MakePlaced]] = []
        self._placed = _NOTHING

    def append(self, applied: Applied) -> None:
        """Add one."""
        self._count += 1
        self._made.append(applied)

    def add(self, count: int, make: MakeApplied, make_placed: MakePlaced) -> None:
        """Add so many, to be made later: whole, or no more than their places."""
        self._count += count
        self._to_make.append((make, make_placed))

    def placed(self) -> Placed:
        """Where each stands, in no order: a third of the work of making them.

        Made once, and again only when events were added: each is a digest, and a step asks twice.
        """
        if len(self._placed.positions) != self._count:
            parts = [_placed(self._made)]
            for _, make_placed in self._to_make:
                parts += make_placed()
            positions, identities = zip(*parts, strict=True)
            self._placed = Placed(np.concatenate(positions), np.concatenate(identities))
        return self._placed

    def places(self) -> Iterator[tuple[int, bytes]]:
        """(position, identity) of each, in no order."""
        positions, identities = self.placed()
        joined = identities.tobytes()
        ends = range(IDENTITY_BYTES, len(joined) + 1, IDENTITY_BYTES)
        for position, end in zip(positions.tolist(), ends, strict=True):
            yield position, joined[end - IDENTITY_BYTES : end]

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
