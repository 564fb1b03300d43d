"""kill -9 of workers, database and broker while events flow: the log is the topic, exactly.

The ordinary run kills a dozen times. `make chaos` runs the long form: two hundred kills, two
million events.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.integration.ledger_world import GROUND, LedgerWorld, Worker, ledger_world, until

from ledger.adapters import database
from tollbook.stack import Stack

KILLS = int(os.environ.get("TOLLBOOK_KILLS", "12"))
EVENTS = int(os.environ.get("TOLLBOOK_KILL_EVENTS", "12000"))
SEED = int(os.environ.get("TOLLBOOK_KILL_SEED", "10"))
PARTITIONS = 4
# Over and over, in an order that the seed shuffles: a worker dies most often, as there are most.
VICTIMS = (
    "worker", "backend", "worker", "postgres", "worker", "kafka",
    "worker", "backend", "worker", "postgres",
)  # fmt: skip
WAIT_S = 180.0
BATCH_BYTES = 4_096 if EVENTS < 100_000 else 32_768
PAUSE_S = 0.4
"""The longest time between the first event after a kill and the next kill."""

pytestmark = [
    pytest.mark.integration,
    pytest.mark.chaos,
    pytest.mark.timeout(900 + 30 * KILLS + EVENTS // 1_000),
]


class Crew:
    """Workers, of which each is replaced when it dies."""

    def __init__(self, world: LedgerWorld, count: int) -> None:
        self._world = world
        self.workers: list[Worker] = [world.start_worker() for _ in range(count)]

    def kill(self, rng: random.Random) -> None:
        victim = self.workers.pop(rng.randrange(len(self.workers)))
        victim.kill()
        self.workers.append(self._world.start_worker())

    def check(self) -> None:
        """None of them ended by itself, and none met what nobody foresaw."""
        assert all(worker.process.poll() is None for worker in self.workers)
        lines = [line for worker in self.workers for line in worker.said().splitlines()]
        # The pool tells with a traceback that it tries to connect again; that is foreseen.
        assert not [line for line in lines if "Traceback" in line and "asyncpg.pool" not in line]


def kill_backend(world: LedgerWorld, pids: list[int]) -> None:
    """A server process in the middle of its work: the database restarts all the others too."""
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
            return


class Flow:
    """Events into every partition: each kill lets its share of them come, and no more."""

    def __init__(self, world: LedgerWorld) -> None:
        self._world = world
        self._kills = 0
        self._feeds = [
            asyncio.create_task(
                world.deliver(
                    partition,
                    world.values(partition, EVENTS // PARTITIONS),
                    functools.partial(self._pause, partition),
                    BATCH_BYTES,
                )
            )
            for partition in range(PARTITIONS)
        ]

    async def _pause(self, partition: int) -> None:
        """A little always, and for as long as the next kill has not come."""
        await asyncio.sleep(0.02)

        async def may_come() -> bool:
            # No more than the kills so far allow: behind the last one there must be some to come.
            due = EVENTS // PARTITIONS * self._kills
            return self._world.sent[partition] * KILLS <= due

        await until("the next kill", may_come, WAIT_S)

    def kill_comes(self) -> None:
        """Let more events come."""
        self._kills += 1

    async def end(self) -> None:
        """When all of them are sent."""
        await asyncio.gather(*self._feeds)

    def cancel(self) -> None:
        """Send no more."""
        for feed in self._feeds:
            feed.cancel()


async def moves(world: LedgerWorld, size: int) -> bool:
    """Whether the logs have grown past a size."""
    try:
        return await world.size() > size
    except database.AWAY:
        return False


async def size_of(world: LedgerWorld) -> int:
    """How large the logs are, once the database says it."""
    found = 0

    async def answers() -> bool:
        nonlocal found
        try:
            found = await world.size()
        except database.AWAY:
            return False
        return True

    await until("the database answers", answers, WAIT_S)
    return found


async def strike(world: LedgerWorld, crew: Crew, victim: str, rng: random.Random) -> None:
    match victim:
        case "worker":
            await asyncio.to_thread(crew.kill, rng)
        case "backend":
            rows: list[Any] = []
            with contextlib.suppress(*database.AWAY):
                rows = await world.db.fetch(
                    "SELECT pid FROM pg_stat_activity WHERE datname = $1"
                    " AND usename = 'tollbook_ledger' ORDER BY state = 'active' DESC",
                    world.database,
                )
            kill_backend(world, [row["pid"] for row in rows])
        case part:
            await asyncio.to_thread(world.stack.wait_ready, part, WAIT_S)
            await asyncio.to_thread(world.stack.kill, part)


async def test_the_log_is_the_topic_whatever_is_killed(ground: Stack, tmp_path: Path) -> None:
    """Exhibit 10 on the real parts. Set and order of what is accepted are those of what was sent;
    every leaf, tile, proof, count and stream is that of the naive reference.
    """
    rng = random.Random(SEED)
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(KILLS)]
    rng.shuffle(victims)
    async with ledger_world(ground, tmp_path, PARTITIONS) as world:
        crew = Crew(world, 2)
        flow = Flow(world)
        try:
            await until("events flow", functools.partial(moves, world, 0), WAIT_S)
            for victim in victims:
                await asyncio.sleep(rng.random() * PAUSE_S)
                before = await size_of(world)
                flow.kill_comes()
                await strike(world, crew, victim, rng)
                goes_on = functools.partial(moves, world, before)
                await until(f"events flow on after {victim}", goes_on, WAIT_S)
            await flow.end()
        finally:
            flow.cancel()
        await asyncio.to_thread(ground.up, GROUND)
        read = await world.check(wait_s=600)
        crew.check()
        assert sum(world.sent) == EVENTS
        print(f"{dict(Counter(victims))} killed: {EVENTS} events sent, {read} records read")
