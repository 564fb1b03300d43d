"""Writes to several tables in one statement: one round trip, and no wait for it in between.

PostgreSQL runs the parts of one WITH in no order and on one snapshot, and all
of them to their end: none may count on what another one wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

_PLACE: Final = re.compile(r"\$(\d+)")


class Together:
    """Statements that are gathered, each with arguments of its own from $1 on, and run as one."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._arguments: list[Any] = []

    def add(self, statement: str, *arguments: Any, name: str = "") -> None:
        """Gather one: INSERT, UPDATE or DELETE; by its name a later one reads what it returns."""
        before = len(self._arguments)
        moved = _PLACE.sub(lambda found: f"${before + int(found[1])}", statement)
        self._parts.append(f"{name or f'part_{len(self._parts)}'} AS ({moved})")
        self._arguments += arguments

    async def run(self, db: Any) -> None:
        """Run them, if there are any."""
        if self._parts:
            await db.execute(f"WITH {', '.join(self._parts)} SELECT", *self._arguments)


def columns(rows: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """Rows, at least one, as an array for each column."""
    return [list(column) for column in zip(*rows, strict=True)]


def numbers(amounts: Iterable[int]) -> list[str]:
    """Numbers of any size for a `$n::text[]::numeric[]`: as text they are sent in a tenth of the
    time that a decimal takes to be made and taken apart.
    """
    return [str(amount) for amount in amounts]
