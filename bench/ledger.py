"""How fast the ledger is: Kafka to durable log, beside what PostgreSQL does with the same rows.

Everything real and on this machine: broker, database and workers share its
cores, fsync is on. The runs read one topic, each into a database of its own.
The figures are events a second over the whole run, from the start of the worker
processes to the last durable event, and again without their start (first to
last commit).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import psutil
import structlog

from bench.arena import arena, full_topic, with_database, workers
from bench.growth import growth
from bench.lateness import latency
from kernel import leaf as leaves
from kernel.tiles import decode_bundle
from ledger.domain.scan import scan
from tollbook.stack import Stack, running_stack

log = structlog.get_logger()

SAMPLE_S: Final = 0.02
TIMEOUT_S: Final = 900
BASELINE_BATCH: Final = 8_192


async def _sizes(db: Any) -> int:
    size: int = await db.fetchval(
        "SELECT coalesce(sum(size), 0)::bigint FROM ledger.log_head WHERE name LIKE 'usage-%'"
    )
    return size


async def _watch(
    db: Any, events: int, processes: Sequence[psutil.Process]
) -> tuple[list[tuple[float, int]], int]:
    """(time, size) while the log grows to `events`, and the workers' largest memory together."""
    samples: list[tuple[float, int]] = []
    largest = 0
    deadline = time.perf_counter() + TIMEOUT_S
    while True:
        size = await _sizes(db)
        if not samples or size != samples[-1][1]:
            samples.append((time.perf_counter(), size))
            largest = max(largest, sum(item.memory_info().rss for item in processes))
        if size >= events:
            return samples, largest
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{size} of {events} events after {TIMEOUT_S} s")
        await asyncio.sleep(SAMPLE_S)


async def throughput(stack: Stack, topic: str, events: int, count: int) -> dict[str, Any]:
    """A topic that is full already, and `count` workers that start: how fast is it in the log?"""
    on = await arena(stack, f"w{count}_{events}", topic)
    db = await asyncpg.connect(on.admin)
    try:
        await db.execute("CHECKPOINT")
        wal_before = await db.fetchval("SELECT pg_current_wal_lsn()")
        begun = time.perf_counter()
        async with workers(on, count) as processes:
            samples, memory = await _watch(db, events, processes)
        wal = await db.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", wal_before)
        disk = await db.fetchval(
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = 'ledger' AND c.relkind = 'r'"
        )
        accepted = await db.fetchval(
            "SELECT sum(accepted)::bigint FROM ledger.log_head WHERE name LIKE 'usage-%'"
        )
    finally:
        await db.close()
    if accepted != events:
        raise AssertionError(f"{events} events were sent, {accepted} were accepted")
    growing = [sample for sample in samples if sample[1]]
    (first_at, first_size), (last_at, _) = growing[0], growing[-1]
    return {
        "workers": count,
        "events": events,
        "events_per_s": round(events / (last_at - begun)),
        "events_per_s_steady": round((events - first_size) / (last_at - first_at)),
        "seconds": round(last_at - begun, 2),
        "rss_mib": round(memory / 2**20),
        "disk_bytes_per_event": round(int(disk) / events, 1),
        "wal_bytes_per_event": round(int(wal) / events, 1),
        "by_size": _by_size(growing),
        "database": on.database,
    }


def _by_size(samples: Sequence[tuple[float, int]]) -> dict[str, int]:
    """Events a second in each stretch of the run: does it slow down as the log grows?"""
    found: dict[str, int] = {}
    bounds = [100_000, 300_000, 1_000_000, 3_000_000, 10_000_000]
    start = 0
    for bound in bounds:
        part = [(at, size) for at, size in samples if start <= size <= bound]
        if len(part) > 2 and part[-1][1] >= bound * 0.9:
            (first_at, first_size), (last_at, last_size) = part[0], part[-1]
            found[f"to_{bound}"] = round((last_size - first_size) / (last_at - first_at))
        start = bound
    return found


async def _rows(dsn: str, limit: int) -> list[tuple[Any, ...]]:
    """The log's own events as one row each, as a plain table would hold them."""
    db = await asyncpg.connect(dsn)
    rows: list[tuple[Any, ...]] = []
    try:
        chunks = await db.fetch(
            "SELECT log_id, first_position, leaves FROM ledger.log_chunk"
            " WHERE log_id >= 100 ORDER BY log_id, first_position LIMIT $1",
            limit // 200,
        )
        for log_id, first, data in chunks:
            for position, raw in enumerate(decode_bundle(data), first):
                leaf = leaves.decode(raw)
                found = scan(leaf.value)
                rows.append(
                    (
                        log_id,
                        position,
                        leaf.offset,
                        leaf.timestamp_ms,
                        leaf.disposition,
                        leaf.reason,
                        f"{log_id}/{found.stream_id}",
                        found.stream_seq,
                        found.identity,
                        raw,
                    )
                )
    finally:
        await db.close()
    return rows[:limit]


_COLUMNS: Final = (
    "log_id integer, position bigint, kafka_offset bigint, timestamp_ms bigint,"
    " disposition smallint, reason smallint, stream_id text, stream_seq bigint,"
    " identity bytea, leaf bytea"
)
_NAMES: Final = [part.split()[0] for part in _COLUMNS.split(", ")]


async def copy_baselines(dsn: str, events: int) -> dict[str, Any]:
    """Plain COPY of the same events, and staging with ON CONFLICT: events a second each."""
    rows = await _rows(dsn, events)
    db = await asyncpg.connect(dsn)
    try:
        await db.execute("DROP SCHEMA IF EXISTS baseline CASCADE; CREATE SCHEMA baseline")
        plain = await _plain_copy(db, rows)
        staged = await _staging(db, rows)
    finally:
        await db.execute("DROP SCHEMA baseline CASCADE")
        await db.close()
    return {
        "events": len(rows),
        "plain_copy_events_per_s": plain,
        "staging_on_conflict_events_per_s": staged,
    }


async def _plain_copy(db: Any, rows: Sequence[tuple[Any, ...]]) -> int:
    await db.execute(f"CREATE TABLE baseline.plain ({_COLUMNS}, PRIMARY KEY (log_id, position))")
    await db.execute("CHECKPOINT")
    begun = time.perf_counter()
    for at in range(0, len(rows), BASELINE_BATCH):
        await db.copy_records_to_table(
            "plain", schema_name="baseline", columns=_NAMES, records=rows[at : at + BASELINE_BATCH]
        )
    return round(len(rows) / (time.perf_counter() - begun))


async def _staging(db: Any, rows: Sequence[tuple[Any, ...]]) -> int:
    await db.execute(
        f"CREATE TABLE baseline.final ({_COLUMNS}, PRIMARY KEY (log_id, position),"
        " UNIQUE (identity))"
    )
    await db.execute(f"CREATE TEMP TABLE staging ({_COLUMNS}) ON COMMIT DELETE ROWS")
    await db.execute("CHECKPOINT")
    begun = time.perf_counter()
    for at in range(0, len(rows), BASELINE_BATCH):
        async with db.transaction():
            await db.copy_records_to_table(
                "staging", columns=_NAMES, records=rows[at : at + BASELINE_BATCH]
            )
            await db.execute(
                "INSERT INTO baseline.final SELECT * FROM staging ON CONFLICT (identity) DO NOTHING"
            )
    return round(len(rows) / (time.perf_counter() - begun))


async def _run(events: int, rates: Sequence[int], seconds: float) -> dict[str, Any]:
    with running_stack(parts=("kafka", "postgres", "database")) as stack:
        topic = await full_topic(stack, events)
        runs = []
        for count in (1, 2):
            runs.append(await throughput(stack, topic, events, count))
            log.info("throughput", **runs[-1])
        dsn = with_database(stack.environment()["TOLLBOOK_POSTGRES"], runs[-1]["database"])
        baselines = await copy_baselines(dsn, min(events, 1_000_000))
        for result in runs:
            result["of_plain_copy"] = round(
                result["events_per_s"] / baselines["plain_copy_events_per_s"], 2
            )
        waits = [await latency(stack, rate, seconds) for rate in rates]
    return {
        "throughput": runs,
        "baselines": baselines,
        "latency": waits,
        "owner_us_per_event": growth(),
    }


def run(
    events: int = int(os.environ.get("TOLLBOOK_BENCH_EVENTS", "5000000")),
    rates: Sequence[int] = (1_000, 10_000, 50_000),
    seconds: float = 10,
) -> dict[str, Any]:
    """Measure; gives figures for JSON."""
    return asyncio.run(_run(events, rates, seconds))
