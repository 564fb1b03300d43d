"""Rows of events as COPY takes them: read back as the manual says they are."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pricing.adapters import event_rows, store
from pricing.domain.applications import Placed

PLACES = st.lists(
    st.tuples(st.integers(0, 2**63 - 1), st.binary(min_size=16, max_size=16)), max_size=9
)


def rows_of(data: bytes) -> list[tuple[bytes, ...]]:
    """The fields of every row: the format of PostgreSQL's manual, COPY, "Binary Format"."""
    assert data.startswith(b"PGCOPY\n\xff\r\n\x00")
    flags, extension = struct.unpack_from(">ii", data, 11)
    assert (flags, extension) == (0, 0)
    at = 19
    rows: list[tuple[bytes, ...]] = []
    while (columns := struct.unpack_from(">h", data, at)[0]) != -1:
        at += 2
        fields: list[bytes] = []
        for _ in range(columns):
            (size,) = struct.unpack_from(">i", data, at)
            fields.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        rows.append(tuple(fields))
    assert at + 2 == len(data)
    return rows


@given(st.lists(st.tuples(st.sampled_from(["usage-0", "usage-4095"]), PLACES), max_size=4))
def test_rows_are_the_events(parts: list[tuple[str, list[tuple[int, bytes]]]]) -> None:
    placed = [
        (
            log,
            Placed(
                np.array([position for position, _ in places], dtype=np.int64),
                np.frombuffer(b"".join(identity for _, identity in places), dtype=np.uint8).reshape(
                    -1, 16
                ),
            ),
        )
        for log, places in parts
    ]
    assert rows_of(b"".join(event_rows.whole(placed))) == [
        (identity, log.encode(), struct.pack(">q", position))
        for log, places in parts
        for position, identity in places
    ]


async def test_the_next_step_is_rated_when_the_database_has_all_rows_and_still_works() -> None:
    sent = asyncio.Event()
    taken: list[bytes] = []

    class Database:
        async def copy_to_table(self, table: str, source: AsyncIterator[bytes], **_: Any) -> None:
            async for piece in source:
                assert not sent.is_set()
                taken.append(piece)
            # Its answer is not here yet.
            assert sent.is_set()

    await store._copy_events(Database(), [b"a", b"b"], sent)
    assert taken == [b"a", b"b"]
    assert sent.is_set()
