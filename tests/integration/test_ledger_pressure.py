"""A database that is slow, or has no space left: the worker waits with it, and nothing is lost."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import asyncpg
import psutil
import pytest
from tests.integration.ledger_world import LedgerWorld, ledger_world, until
from tests.integration.small_disk import enlarge, small_disk
from tests.integration.tcp_proxy import line_to

from tollbook.stack import Stack

pytestmark = pytest.mark.integration

MIB = 1 << 20
EVENTS = 100_000
"""Some 28 MiB in the topic."""
MAY_GROW_BYTES = 14 * MIB


async def test_a_slow_database_slows_the_reading_and_memory_stays_flat(
    ground: Stack, tmp_path: Path
) -> None:
    async with (
        ledger_world(ground, tmp_path) as world,
        line_to(world.postgres_address) as line,
    ):
        await world.deliver(0, world.values(0, EVENTS), batch_bytes=512 * 1024)
        line.delay_s = 0.05
        worker = world.start_worker(address=line.address, ledger_batch_records=500)
        process = psutil.Process(worker.process.pid)
        await world.wait_size(5_000)
        base = process.memory_info().rss
        most = base
        while (size := await world.size()) < EVENTS // 5:
            most = max(most, process.memory_info().rss)
            await asyncio.sleep(0.05)
        assert size < EVENTS // 2, "the database was not slow"
        assert most - base < MAY_GROW_BYTES
        line.delay_s = 0
        await world.check()
        assert (await world.head())["accepted"] == EVENTS
        assert await asyncio.to_thread(worker.stop) == 0


async def test_a_full_disk_stops_the_worker_and_space_lets_it_go_on(
    ground: Stack, tmp_path: Path
) -> None:
    """It is not ready meanwhile, holds its memory, and writes no part of a batch."""
    server = psutil.Process(ground.process("postgres").pid)
    admin = await asyncpg.connect(ground.environment()["TOLLBOOK_POSTGRES"])
    with small_disk(server.uids().real, 24) as disk:
        await admin.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        try:
            async with ledger_world(ground, tmp_path, tablespace="small") as world:
                async with world.workforce():
                    await until("it is ready", functools.partial(ready, world, True))
                    await world.deliver(0, world.values(0, 100_000), batch_bytes=512 * 1024)
                    await until("it is not ready", functools.partial(ready, world, False))
                    full = await world.head()
                    assert 0 < full["size"] < 100_000
                    assert full["halted"] == ""
                    await asyncio.sleep(1)
                    assert (await world.head())["size"] == full["size"]
                    await asyncio.to_thread(enlarge, disk, 24 * 8)
                    await world.wait_read()
                    await until("it is ready again", functools.partial(ready, world, True))
                await world.check()
        finally:
            await admin.execute("DROP TABLESPACE small")
            await admin.close()


async def ready(world: LedgerWorld, wanted: bool) -> bool:
    return world.ready is wanted
