"""Two owners of one log, in every way it comes about: never two rows, never a gap."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.integration.ledger_world import WAIT_S, LedgerWorld, Worker, ledger_world, until
from tests.integration.tcp_proxy import Line, line_to

from kernel.placement import usage_log
from ledger.adapters import database, store
from ledger.adapters.held_log import HeldLog
from ledger.adapters.leaves import LeafReader
from ledger.adapters.partition import PartitionWriter
from ledger.adapters.source import PartitionSource
from ledger.adapters.store import FencedError
from tollbook.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

LEASE_MS = 1_000


@pytest.fixture
async def world(ground: Stack, tmp_path: Path) -> AsyncIterator[LedgerWorld]:
    async with ledger_world(ground, tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def flow(world: LedgerWorld) -> AsyncIterator[None]:
    """Records come into every partition while the block runs: a dozen, twenty times a second."""
    stopped = asyncio.Event()

    def endless(partition: int) -> Iterator[tuple[bytes, bytes]]:
        values = world.values(partition, 1_000_000)
        return itertools.takewhile(lambda _: not stopped.is_set(), values)

    pause = functools.partial(asyncio.sleep, 0.05)
    feeds = [
        asyncio.create_task(world.deliver(partition, endless(partition), pause, batch_bytes=4_096))
        for partition in range(world.partitions)
    ]
    try:
        yield
    finally:
        stopped.set()
        await asyncio.gather(*feeds)


async def test_the_earlier_of_two_owners_writes_nothing_more(world: LedgerWorld) -> None:
    """Both read the same records and both try; each take-over ends the owner before it."""
    pool = await database.open_pool(world.dsn(), 8, asyncio.Event())
    log_id = await store.open_log(pool, usage_log(0))
    owners: list[asyncio.Task[None]] = []
    stopped = asyncio.Event()
    async with flow(world):
        for number in range(5):
            head = None
            while head is None:  # the owner before it renews its lease with every batch
                await pool.execute("UPDATE log_head SET lease_until = '-infinity'")
                head = await store.take_over(pool, log_id, f"owner-{number}", 60_000)
            held = HeldLog(pool, head, 60_000, LeafReader(pool, world.archive()))
            source = PartitionSource(world.kafka, world.topic, 0)
            writer = PartitionWriter(held, source, 100, lambda name: None)
            owners.append(asyncio.create_task(writer.run(stopped)))
            size = head.size
            await world.wait_size(size + 100)
            for earlier in owners[:-1]:
                with pytest.raises(FencedError):
                    await asyncio.wait_for(asyncio.shield(earlier), WAIT_S)
    await world.wait_read()
    stopped.set()
    await owners[-1]
    await pool.close()
    await world.check()


async def test_a_worker_that_slept_past_its_lease_finds_its_log_taken(world: LedgerWorld) -> None:
    workers = [world.start_worker()]
    async with flow(world):
        await world.wait_size(100)
        workers.append(world.start_worker())
        await until("both live", functools.partial(living, world, 2))
        for _ in range(2):
            owner = (await world.head())["owner"].split("-")
            workers.sort(key=lambda worker: str(worker.process.pid) not in owner)
            sleeper, other = workers
            # In the middle of its work, with records read and not yet written.
            sleeper.send(signal.SIGSTOP)
            try:
                await until("the other owns it", functools.partial(owns, world, other.process.pid))
                await world.wait_size((await world.size()) + 100)
            finally:
                sleeper.send(signal.SIGCONT)
            await until("it knows", functools.partial(said, sleeper, '"lost"'))
            await world.wait_size((await world.size()) + 100)
    await world.check()
    assert (await world.head())["epoch"] >= 3
    assert [worker.stop() for worker in workers] == [0, 0]


async def test_an_idle_owner_learns_that_its_log_is_anothers(world: LedgerWorld) -> None:
    """It has nothing to write, so no fence tells it; else it would count the log as its share."""
    async with world.workforce() as force:
        await world.produce(10)
        await world.check()
        await world.db.execute(
            "UPDATE log_head SET epoch = epoch + 1, owner = 'another',"
            " lease_until = now() + interval '1 hour' WHERE name LIKE 'usage-%'"
        )

        async def knows() -> bool:
            return not force.owned()

        await until("it knows", knows)
        await world.db.execute("UPDATE log_head SET lease_until = now() WHERE owner = 'another'")

        async def takes_it_again() -> bool:
            return bool(force.owned())

        await until("it takes it when that lease has run out", takes_it_again)
        await world.produce(10, seed=2)
        await world.check()


async def living(world: LedgerWorld, count: int) -> bool:
    found: int = await world.db.fetchval("SELECT count(*) FROM worker WHERE lease_until > now()")
    return found >= count


async def owns(world: LedgerWorld, pid: int) -> bool:
    return str(pid) in (await world.head())["owner"].split("-")


async def said(worker: Worker, *words: str) -> bool:
    return any(all(word in line for word in words) for line in worker.said().splitlines())


async def test_workers_that_come_and_go_all_the_time_lose_and_double_nothing(
    ground: Stack, tmp_path: Path
) -> None:
    """A storm: up to four workers, one of them joining or leaving every tenth of a second."""
    rng = random.Random(4)
    async with ledger_world(ground, tmp_path, partitions=4) as world:
        async with flow(world), contextlib.AsyncExitStack() as rest:
            await rest.enter_async_context(world.workforce(lease_ms=500))
            crew: list[contextlib.AsyncExitStack] = []
            rounds = epochs = 0
            while rounds < 40 or epochs <= 15:
                rounds += 1
                if len(crew) < 3 and (not crew or rng.random() < 0.5):
                    crew.append(await rest.enter_async_context(contextlib.AsyncExitStack()))
                    await crew[-1].enter_async_context(world.workforce(lease_ms=500))
                else:
                    await crew.pop(rng.randrange(len(crew))).aclose()
                await asyncio.sleep(0.1)
                epochs = sum(head["epoch"] for head in (await world.heads()).values())
                assert rounds < 1_000, "there is no storm"
        async with world.workforce():
            await world.check()


@pytest.fixture
async def line(world: LedgerWorld) -> AsyncIterator[Line]:
    async with line_to(world.postgres_address) as made:
        yield made


async def test_a_commit_whose_answer_is_lost_counts_once(world: LedgerWorld, line: Line) -> None:
    """The line is cut after the database committed and before the worker could hear of it."""
    async with world.workforce(address=line.address):
        await world.produce(10)
        await world.wait_read()
        for round_ in range(10):
            size = await world.size()
            # Only a batch is as long; what the worker says of itself meanwhile gets its answers.
            line.hold_answers(to_bytes=8_000)
            await world.produce(50, seed=2 + round_)
            # Another connection sees the commit; the one that made it hears nothing.
            await world.wait_size(size + 1)
            await asyncio.wait_for(line.held.wait(), WAIT_S)
            line.cut()
            line.release()
            await world.wait_read()
    await world.check()
    assert (await world.head())["accepted"] == 10 + 10 * 50


async def test_a_batch_that_never_reached_the_database_is_written_anew(
    world: LedgerWorld, line: Line
) -> None:
    async with world.workforce(address=line.address):
        await world.produce(10)
        await world.wait_read()
        for round_ in range(10):
            size = await world.size()
            line.hold_requests()
            await world.produce(50, seed=2 + round_)
            await asyncio.wait_for(line.held.wait(), WAIT_S)
            line.cut()
            assert await world.size() == size
            line.release()
            await world.wait_read()
    await world.check()
    assert (await world.head())["accepted"] == 10 + 10 * 50
