"""From the topic to the balance: how many events a second, how late each is, and a rebuild.

Everything real and on this machine: broker, database, one ledger worker, the
ledger's server and the projector. A balance is what a reader of pricing's
tables sees: the projector's position commits with it. The baseline of the
rebuild is plain SQL over the same events, decoded into a table before: one
GROUP BY that sums what each account owes. It must come to the same sums.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg
import structlog
from tests.integration.free_port import free_port

from bench import priced_load, trickle_load, usage_load
from bench.arena import (
    PARTITIONS,
    Arena,
    arena,
    full_topic,
    migrate,
    wait_owned,
    workers,
)
from bench.lateness import waits_ms
from bench.reading import server
from kernel import grpcs
from kernel import leaf as leaves
from kernel.placement import CONTROL_LOG
from kernel.tiles import decode_bundle
from pricing.adapters import queries
from tollbook.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tollbook.stack import Stack, running_stack
from tollbook.stack.ports import HOST
from tollbook.usage.v1 import usage_pb2

log = structlog.get_logger()

EVENTS: Final = int(os.environ.get("TOLLBOOK_BENCH_EVENTS", "1000000"))
RATE: Final = 5_000
SECONDS: Final = 10
WARM_S: Final = 10
TIMEOUT_S: Final = 600
_POLL_S: Final = 0.25
_SIZES: Final = (
    "SELECT h.log_id, p.size FROM pricing.log_position p JOIN ledger.log_head h ON h.name = p.log"
    " WHERE p.log LIKE 'usage-%' AND p.size > 0"
)


@asynccontextmanager
async def _projector(on: Arena, ledger: str) -> AsyncIterator[None]:
    env = on.environment(
        TOLLBOOK_HEALTH_ADDRESS=f"{HOST}:{free_port()}", TOLLBOOK_LEDGER_ADDRESS=ledger
    )
    command = [sys.executable, "-m", "pricing.entrypoints.projector"]
    process = await asyncio.to_thread(subprocess.Popen, command, env=env)
    try:
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)


async def _write_control(ledger: str) -> None:
    """Put card and accounts into the control log."""
    async with grpcs.channel(ledger) as channel:
        stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)
        for number, payload in enumerate(priced_load.control_payloads()):
            request = ledger_pb2.AppendRequest(
                log=CONTROL_LOG, idempotency_key=f"bench-{number}", payload=payload
            )
            await stub.Append(request, timeout=30, wait_for_ready=True)


async def _applied(db: Any, events: int) -> list[tuple[float, int]]:
    """(time, events in balances) until all are."""
    samples: list[tuple[float, int]] = []
    deadline = time.perf_counter() + TIMEOUT_S
    while True:
        size = sum(row["size"] for row in await db.fetch(_SIZES))
        if size and (not samples or size != samples[-1][1]):
            samples.append((time.perf_counter(), size))
        if size >= events:
            return samples
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{size} of {events} events after {TIMEOUT_S} s")
        await asyncio.sleep(0.02)


def _rates(samples: list[tuple[float, int]], begun: float) -> dict[str, Any]:
    (first_at, first_size), (last_at, size) = samples[0], samples[-1]
    return {
        "events": size,
        "events_per_s": round(size / (last_at - begun)),
        "events_per_s_steady": round((size - first_size) / (last_at - first_at)),
        "seconds": round(last_at - begun, 2),
    }


async def _digest(db: Any) -> bytes:
    await db.execute("SET search_path = pricing")
    return (await queries.snapshot(db)).digest()


async def _whole_way(on: Arena, db: Any, ledger: str, events: int) -> dict[str, Any]:
    """A topic that is full already, and worker and projector that start."""
    begun = time.perf_counter()
    async with workers(on, 1), _projector(on, ledger):
        return _rates(await _applied(db, events), begun)


async def _rebuild(on: Arena, db: Any, ledger: str, events: int) -> dict[str, Any]:
    """Pricing's tables dropped, and made anew from position 0 of every log."""
    before = await _digest(db)
    await db.execute("DROP SCHEMA pricing CASCADE")
    await migrate(on, "pricing")
    begun = time.perf_counter()
    async with _projector(on, ledger):
        rates = _rates(await _applied(db, events), begun)
    if await _digest(db) != before:
        raise AssertionError("the rebuild came to other balances")
    return rates


async def _group_by(db: Any) -> dict[str, Any]:
    """The same events in a plain table, and what each account owes by one GROUP BY."""
    await db.execute(
        "CREATE TABLE plain_usage"
        " (account_id text, model text, plain bigint, cached bigint, output bigint)"
    )
    rows: list[tuple[Any, ...]] = []
    for chunk in await db.fetch("SELECT leaves FROM ledger.log_chunk WHERE log_id >= 100"):
        for raw in decode_bundle(chunk["leaves"]):
            record = usage_pb2.UsageRecord.FromString(leaves.decode(raw).value)
            event = usage_pb2.UsageEvent.FromString(record.usage_event)
            amounts = [part.amount for part in event.quantities]
            rows.append((event.account_id, event.served_model, *amounts))
    await db.copy_records_to_table("plain_usage", records=rows)
    await db.execute("VACUUM ANALYZE plain_usage")
    pico = {name: int(float(price) * 1_000_000) for name, price in priced_load.PRICES.items()}
    begun = time.perf_counter()
    owed = await db.fetch(
        "SELECT account_id, sum(plain::numeric * $1::int + cached::numeric * $2::int"
        " + output::numeric * $3::int) AS pico FROM plain_usage GROUP BY account_id",
        pico["plain"],
        pico["cached"],
        pico["output"],
    )
    seconds = time.perf_counter() - begun
    charged = {
        row["ledger_account"].removeprefix("revenue:"): row["amount_pico"]
        for row in await db.fetch(
            "SELECT ledger_account, amount_pico FROM pricing.balance"
            " WHERE ledger_account LIKE 'revenue:%'"
        )
    }
    if charged != {row["account_id"]: row["pico"] for row in owed}:
        raise AssertionError("plain SQL comes to other charges")
    return {"events": len(rows), "events_per_s": round(len(rows) / seconds)}


async def _throughput(stack: Stack) -> dict[str, Any]:
    events = EVENTS // PARTITIONS * PARTITIONS
    topic = await full_topic(stack, events)
    on = await arena(stack, "charging", topic)
    await migrate(on, "pricing")
    db = await asyncpg.connect(on.admin)
    try:
        async with server(on) as served:
            await _write_control(served.address)
            found = {"whole_way": await _whole_way(on, db, served.address, events)}
            log.info("whole way", **found["whole_way"])
            found["rebuild"] = await _rebuild(on, db, served.address, events)
            log.info("rebuild", **found["rebuild"])
        found["plain_group_by"] = await _group_by(db)
        return found
    finally:
        await db.close()


async def _latency(stack: Stack) -> dict[str, Any]:
    """Milliseconds from a record's Kafka timestamp until its charge stands in a balance."""
    on = await arena(stack, "charging_rate")
    await migrate(on, "pricing")
    db = await asyncpg.connect(on.admin)
    seen: dict[int, list[tuple[int, float]]] = {}
    try:
        async with server(on) as served:
            await _write_control(served.address)
            async with workers(on, 1), _projector(on, served.address):
                await wait_owned(db)
                # At the same rate first, so that all is up and loaded when time counts.
                kafka = stack.address("kafka")
                warm = await trickle_load.trickle(kafka, on.topic, PARTITIONS, RATE, WARM_S, seed=1)
                await _applied(db, warm)
                before = {row["log_id"]: row["size"] for row in await db.fetch(_SIZES)}
                producing = asyncio.create_task(
                    trickle_load.trickle(kafka, on.topic, PARTITIONS, RATE, SECONDS, seed=2)
                )
                size = 0
                news = asyncio.Event()
                await db.add_listener("tollbook_pricing", lambda *_: news.set())
                while not producing.done() or size < warm + producing.result():
                    news.clear()
                    rows = await db.fetch(_SIZES)
                    size = sum(row["size"] for row in rows)
                    now_ms = time.time() * 1000
                    for row in rows:
                        steps = seen.setdefault(row["log_id"], [])
                        if not steps or steps[-1][0] != row["size"]:
                            steps.append((row["size"], now_ms))
                    # As a reader waits: looking all the time would take what is measured.
                    with suppress(TimeoutError):
                        await asyncio.wait_for(news.wait(), _POLL_S)
            waits = await waits_ms(db, seen, before)
    finally:
        await db.close()
    return {"rate_per_s": RATE, "events": len(waits), "ms": usage_load.percentiles(waits)}


async def measure() -> dict[str, Any]:
    """All figures, on a stack of their own."""
    with running_stack(parts=("kafka", "postgres", "database")) as stack:
        return {**await _throughput(stack), "event_to_balance": await _latency(stack)}


def run() -> dict[str, Any]:
    """Measure; gives figures for JSON."""
    return asyncio.run(measure())
