"""A broker that refuses every connection, as seen by the real client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from aiokafka.client import AIOKafkaClient

ADDRESS = "127.0.0.1:9"
"""The port of `discard`, which nothing listens at."""


@contextmanager
def connecting() -> Iterator[asyncio.Event]:
    """An event that is set once a client is connecting."""
    begun = asyncio.Event()
    real = AIOKafkaClient.bootstrap

    async def bootstrap(client: AIOKafkaClient) -> None:
        begun.set()
        await real(client)

    with patch.object(AIOKafkaClient, "bootstrap", bootstrap):
        yield begun


async def ends(task: asyncio.Task[object], begun: asyncio.Event, turns: int) -> bool:
    """Whether a task ends that is told to so many turns of the loop after it began to connect."""
    await asyncio.wait_for(begun.wait(), 10)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=20)
    ended = task.done()
    while not task.done():
        # Each word may be lost again.
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
    return ended
