"""Which rows of a table of sums this process has written already: to add to one, its key is enough.

A row of such a table has a dozen columns that say what it sums, and three that are the sums. A
step adds mostly to rows that the steps before it made, and what a step costs, here and in the
database, is mostly the number of values that it sends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pricing.adapters.together import Together, columns

_KEPT: Final = 65_536
"""A key that is forgotten is written with all its columns again, which is as right."""

Row = tuple[tuple[Any, ...], tuple[str, ...]]
"""What a row sums, its key first, and its sums."""


class KnownRows:
    """Keys of rows that steps of this process wrote; one that failed ends it, and this with it.

    `insert` takes all columns of a row that may not be there, `change` the key and the sums of one
    that is, and gives a row of each that it changed.
    """

    def __init__(self, name: str, insert: str, change: str) -> None:
        self._name = name
        self._insert = insert
        self._change = change
        self._keys: set[bytes] = set()

    def write(self, together: Together, rows: Iterable[Row]) -> None:
        """Add to the rows' sums, with the rest of the step; in the order of their keys, so that
        the pages it touches are touched once. All of them are known from then on.
        """
        there: list[tuple[Any, ...]] = []
        others: list[tuple[Any, ...]] = []
        for said, sums in sorted(rows):
            if said[0] in self._keys:
                there.append((said[0], *sums))
            else:
                others.append((*said, *sums))
        if len(self._keys) + len(others) > _KEPT:
            self._keys.clear()
        self._keys.update(row[0] for row in others)
        if there:
            together.add_change(self._change, *columns(there), name=self._name, rows=len(there))
        if others:
            together.add(self._insert, *columns(others))
