"""Which rows of a table of sums this process has written already: to add to one, its key is enough.

A row of such a table has a dozen columns that say what it sums, and three that are the sums. A
step adds mostly to rows that the steps before it made, and what a step costs, here and in the
database, is mostly the number of values that it sends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

_KEPT: Final = 65_536
"""A key that is forgotten is written with all its columns again, which is as right."""


class KnownRows:
    """Keys of rows that steps of this process wrote; one that failed ends it, and this with it."""

    def __init__(self) -> None:
        self._keys: set[bytes] = set()

    def split(
        self, rows: Iterable[tuple[Any, ...]]
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """(rows that are there, rows that may not be), by the key that stands first in each.

        All of them are known from then on: whoever asks writes both.
        """
        there: list[tuple[Any, ...]] = []
        others: list[tuple[Any, ...]] = []
        for row in rows:
            (there if row[0] in self._keys else others).append(row)
        if len(self._keys) + len(others) > _KEPT:
            self._keys.clear()
        self._keys.update(row[0] for row in others)
        return there, others
