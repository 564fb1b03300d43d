"""The last records of a boot: on the disk, then to the broker, and neither waited for for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from inference.adapters.spool import Spool

log = structlog.get_logger()

# How long a stop waits for the disk; what it does not take by then the next start makes good.
DURABLE_MS: Final = 10_000
# And how long for the broker; what it does not take the next start sends.
FLUSH_MS: Final = 3_000


async def say_last(
    spool: Spool,
    append: Callable[[], None],
    flushed: Callable[[], Awaitable[None]],
    durable_ms: int = DURABLE_MS,
    flush_ms: int = FLUSH_MS,
) -> bool:
    """Have `append` write the last records; whether the disk took them.

    No error goes out: whoever stops has more to close. Without these records the next start
    settles and closes what this boot left open, as after a kill.
    """
    try:
        append()
        async with asyncio.timeout(durable_ms / 1000):
            await spool.durable()
    except Exception as error:
        log.error(
            "the last records are not on the disk; the next start closes what is open",
            error=str(error) or type(error).__name__,
        )
        return False
    with suppress(TimeoutError):
        async with asyncio.timeout(flush_ms / 1000):
            await flushed()
    return True
