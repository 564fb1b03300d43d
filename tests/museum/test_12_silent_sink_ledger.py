"""Exhibit 12: the sink was broken and the buffer said nothing (litellm#19163).

Here, when the database is gone, hangs, or takes no writes, the worker's readiness is off within
ten seconds; once it works again so is the worker ready, and nothing is missing.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.ledger_world import LedgerWorld, ledger_world, until
from tests.integration.tcp_proxy import Line, line_to

from kernel import grpcs
from ledger.adapters import workforce
from tollbook.stack import Stack

pytestmark = [pytest.mark.museum, pytest.mark.integration]

NOTICED_S = 10.0


@pytest.fixture
async def world(ground: Stack, tmp_path: Path) -> AsyncIterator[LedgerWorld]:
    async with ledger_world(ground, tmp_path) as made:
        yield made


@pytest.fixture
async def line(world: LedgerWorld) -> AsyncIterator[Line]:
    async with line_to(world.postgres_address) as made:
        yield made


async def serves(address: str, wanted: bool) -> bool:
    """What a caller of the health service sees."""
    async with grpcs.channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return not wanted
        return bool((answer.status == health_pb2.HealthCheckResponse.SERVING) == wanted)


async def test_a_broken_sink_turns_readiness_off_within_ten_seconds(
    world: LedgerWorld, line: Line
) -> None:
    worker = world.start_worker(address=line.address)
    good = functools.partial(serves, worker.health, True)
    bad = functools.partial(serves, worker.health, False)
    await world.produce(10)
    await until("it is ready", good)
    await world.wait_read()

    async def gone() -> None:
        line.refuse = True
        line.cut()

    async def hangs() -> None:
        line.hold_requests()

    async def works() -> None:
        line.refuse = False
        line.release()
        line.cut()

    # By the worker's own clock: how soon a caller hears of it is the machine's affair.
    assert workforce.STUCK_S + workforce.TICK_S < NOTICED_S
    for number, breaks in enumerate((gone, hangs), 2):
        await breaks()
        await world.produce(10, seed=number)
        await until("readiness is off", bad)
        await works()
        await until("it is ready again", good)
        await world.wait_read()

    # The database answers everything and takes no writes: somebody holds a lock on the log.
    async with world.db.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        await db.execute("LOCK TABLE log_chunk IN SHARE MODE")
        await world.produce(10, seed=9)
        await until("readiness is off", bad)
        await transaction.rollback()
    await until("it is ready again", good)
    assert await world.check() == 40
    assert await asyncio.to_thread(worker.stop) == 0
