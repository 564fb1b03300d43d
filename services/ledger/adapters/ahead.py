"""Makes what comes next of a stream while what came before is on its way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TypeVar

T = TypeVar("T")


async def one_ahead(source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The items of `source`, in order; the next one is asked for before one is given.

    One and no more: a slow reader holds two. Errors: those of `source`, in their turn. Ends
    `source` when it is ended itself.
    """

    async def step() -> T:
        return await anext(source)

    async with contextlib.aclosing(source):
        following = asyncio.ensure_future(step())
        try:
            while True:
                try:
                    item = await following
                except StopAsyncIteration:
                    return
                following = asyncio.ensure_future(step())
                yield item
        finally:
            following.cancel()
            await asyncio.wait([following])
            if not following.cancelled():
                following.exception()  # whatever it is, nobody waits for it any more
