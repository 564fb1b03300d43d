"""Statements gathered into one keep their own arguments, and what is escaped is what was asked."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pricing.adapters.together import Together, columns, numbers
from pricing.domain.text import escaped, needs_escape


class Heard:
    """A connection that keeps what it is asked to run."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    async def execute(self, *asked: Any) -> None:
        self.asked.append(asked)


def test_each_statement_keeps_its_arguments() -> None:
    together, db = Together(), Heard()
    together.add("DELETE FROM a WHERE x = $2 AND y = $1 RETURNING x", 1, 2, name="gone")
    together.add("INSERT INTO b SELECT x FROM gone")
    together.add("INSERT INTO c SELECT $1, $11", *range(11))
    asyncio.run(together.run(db))
    assert db.asked == [
        (
            "WITH gone AS (DELETE FROM a WHERE x = $2 AND y = $1 RETURNING x),"
            " part_1 AS (INSERT INTO b SELECT x FROM gone),"
            " part_2 AS (INSERT INTO c SELECT $3, $13) SELECT",
            *(1, 2),
            *range(11),
        )
    ]


def test_nothing_gathered_asks_nothing() -> None:
    db = Heard()
    asyncio.run(Together().run(db))
    assert db.asked == []


@given(st.lists(st.tuples(st.integers(), st.text()), min_size=1))
def test_columns_are_the_rows_turned(rows: list[tuple[int, str]]) -> None:
    first, second = columns(rows)
    assert list(zip(first, second, strict=True)) == rows
    assert [int(text) for text in numbers(first)] == first


@given(st.text(st.characters(max_codepoint=0x100)))
def test_what_needs_no_escape_stands_as_it_is(text: str) -> None:
    assert needs_escape(text) == (escaped(text) != text)
