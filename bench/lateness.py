"""How late a record is in its log: from its Kafka timestamp until its commit is seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import asyncpg

from bench import trickle_load, usage_load
from bench.arena import PARTITIONS, arena, wait_owned, workers
from kernel import cycles
from kernel import leaf as leaves
from kernel.tiles import decode_bundle
from tollbook.stack import Stack

WARM_S: Final = 3
LOOK_S: Final = 0.002
_TIMEOUT_S: Final = 120


async def latency(stack: Stack, rate: int, seconds: float) -> dict[str, Any]:
    """Milliseconds from the record's Kafka timestamp until its commit is seen by a reader.

    `ms` is of a worker and a broker that have run for WARM_S; `ms_with_start` is of all records,
    the first ones of a log that was never written and a broker that compiles itself included.
    """
    on = await arena(stack, f"l{rate}")
    db = await asyncpg.connect(on.admin)
    seen: Seen = {}
    try:
        async with workers(on, 1):
            await wait_owned(db)
            producing = asyncio.create_task(
                trickle_load.trickle(
                    stack.address("kafka"), on.topic, PARTITIONS, rate, WARM_S + seconds, seed=rate
                )
            )
            await observe(db, seen, producing)
            all_waits = await waits_ms(db, seen)
            first_ms = min(steps[0][1] for steps in seen.values())
            waits = await waits_ms(db, seen, _sizes_at(seen, first_ms + WARM_S * 1000))
    finally:
        await db.close()
    return {
        "rate_per_s": rate,
        "events": len(waits),
        "ms": usage_load.percentiles(waits),
        "ms_with_start": usage_load.percentiles(all_waits),
    }


Seen = dict[int, list[tuple[int, float]]]
"""By log_id, (size, milliseconds of the clock) as they were seen, growing."""


async def observe(db: Any, seen: Seen, producing: asyncio.Task[int]) -> None:
    """Look at the logs' sizes until they hold what `producing` sent, and none is missed.

    A look every LOOK_S: what it costs is taken from what is measured, and the wait for the next
    look counts as lateness.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    cycles.settle()
    while True:
        rows = await db.fetch(
            "SELECT log_id, size FROM ledger.log_head WHERE log_id >= 100 AND size > 0"
        )
        now_ms = time.time() * 1000
        for log_id, size in rows:
            steps = seen.setdefault(log_id, [])
            if not steps or steps[-1][0] != size:
                steps.append((size, now_ms))
        if producing.done() and sum(size for _, size in rows) >= producing.result():
            return
        if time.monotonic() > deadline:
            raise TimeoutError("the log does not hold what was sent")
        await asyncio.sleep(LOOK_S)


def _sizes_at(seen: Seen, at_ms: float) -> dict[int, int]:
    """Each log's size at an instant, as far as it was seen."""
    return {
        log_id: max((size for size, when in steps if when <= at_ms), default=0)
        for log_id, steps in seen.items()
    }


async def waits_ms(db: Any, seen: Seen, before: Mapping[int, int] | None = None) -> list[float]:
    """Milliseconds from each record's Kafka timestamp to the first look that had it.

    `before`: by log_id, how many of the first entries are left out.
    """
    waits: list[float] = []
    for log_id, steps in seen.items():
        start = (before or {}).get(log_id, 0)
        rows = await db.fetch(
            "SELECT first_position, leaves FROM ledger.log_chunk WHERE log_id = $1"
            " ORDER BY first_position",
            log_id,
        )
        step = 0
        for first, data in rows:
            for position, raw in enumerate(decode_bundle(data), first):
                while step < len(steps) and steps[step][0] <= position:
                    step += 1
                if start <= position and step < len(steps):
                    waits.append(steps[step][1] - leaves.decode(raw).timestamp_ms)
    return waits
