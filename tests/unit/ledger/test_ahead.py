"""A stream made one ahead is the same stream, holds one item more, and ends with its reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.adapters.ahead import one_ahead


class Source:
    """Gives 0, 1, ... up to `count`, then fails if it is to; tells what became of it."""

    def __init__(self, count: int, fails: bool = False) -> None:
        self.count = count
        self.fails = fails
        self.made = 0
        self.ended = False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self.count):
                await asyncio.sleep(0)
                self.made += 1
                yield number
            if self.fails:
                raise ValueError("nothing more")
        finally:
            self.ended = True


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@given(st.integers(0, 20), st.booleans())
def test_the_items_are_the_same_and_an_error_comes_in_its_turn(count: int, fails: bool) -> None:
    async def read() -> None:
        source, found = Source(count, fails), []
        try:
            async for item in one_ahead(source.items()):
                found.append(item)
        except ValueError:
            assert fails
        else:
            assert not fails
        assert found == list(range(count))
        assert source.ended

    asyncio.run(read())


async def test_one_is_made_while_one_is_read_and_no_more() -> None:
    source = Source(10)
    stream = one_ahead(source.items())
    for number in range(9):
        assert await anext(stream) == number
        await settle()
        assert source.made == number + 2
    await stream.aclose()


@pytest.mark.parametrize("read", [0, 1, 3])
async def test_a_reader_that_leaves_ends_the_source(read: int) -> None:
    source = Source(10, fails=True)
    stream = one_ahead(source.items())
    for _ in range(read):
        await anext(stream)
    await stream.aclose()
    assert source.ended or not source.made
    assert source.made <= read + 1


@pytest.mark.parametrize("read", [0, 1])
async def test_a_reader_that_is_cut_off_or_leaves_ends_a_source_that_waits(read: int) -> None:
    ended = asyncio.Event()

    async def waiting() -> AsyncGenerator[int, None]:
        try:
            for number in range(read):
                yield number
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def follow() -> None:
        async for _ in stream:
            pass

    stream = one_ahead(waiting())
    if read:
        assert await anext(stream) == 0
        await settle()
        await stream.aclose()
    else:
        reader = asyncio.create_task(follow())
        await settle()
        reader.cancel()
        await asyncio.wait([reader])
        assert reader.cancelled()
    assert ended.is_set()
