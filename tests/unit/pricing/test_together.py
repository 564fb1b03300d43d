"""Statements gathered into one keep their own arguments, and what is escaped is what was asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.adapters.known_rows import KnownRows
from pricing.adapters.together import RowsGoneError, Together, columns, numbers
from pricing.domain.text import escaped, needs_escape


class Heard:
    """A connection that keeps what it is asked to run."""

    def __init__(self, *counts: int) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._counts = counts

    async def fetchrow(self, *asked: Any) -> tuple[int, ...]:
        self.asked.append(asked)
        return self._counts


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
            " part_2 AS (INSERT INTO c SELECT $3, $13) SELECT ",
            *(1, 2),
            *range(11),
        )
    ]


def test_an_update_that_finds_fewer_rows_than_there_were_is_told() -> None:
    together, db = Together(), Heard(2, 3)
    together.add_change("UPDATE a SET x = $1 RETURNING 1", 5, name="some", rows=2)
    together.add_change("UPDATE b SET x = $1 RETURNING 1", 6, name="others", rows=4)
    with pytest.raises(RowsGoneError, match="others: 4 rows were there before, 3 are"):
        asyncio.run(together.run(db))
    ((statement, *arguments),) = db.asked
    assert statement.endswith(" SELECT (SELECT count(*) FROM some), (SELECT count(*) FROM others)")
    assert arguments == [5, 6]


@given(st.lists(st.lists(st.binary(max_size=1))))
def test_a_row_is_known_once_it_was_written(steps: list[list[bytes]]) -> None:
    insert, change = "INSERT INTO a SELECT $1, $2, $3", "UPDATE a SET x = $2 WHERE k = $1"
    known, written = KnownRows("there", insert, change), set[bytes]()
    for keys in steps:
        rows = {key: ((key, f"text {key!r}"), (str(len(written)),)) for key in keys}
        there, others = sorted(written & rows.keys()), sorted(rows.keys() - written)
        together, db = Together(), Heard(*([len(there)] if there else []))
        known.write(together, rows.values())
        asyncio.run(together.run(db))
        sums = [str(len(written))]
        arguments: list[Any] = [there, sums * len(there)] if there else []
        if others:
            arguments += [others, [f"text {key!r}" for key in others], sums * len(others)]
        assert [tuple(arguments)] * bool(keys) == [asked[1:] for asked in db.asked]
        written |= set(keys)


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
