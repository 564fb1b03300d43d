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
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import numpy as np
import psutil
import structlog

from bench import usage_load
from kernel import leaf as leaves
from kernel.tiles import decode_bundle
from ledger.domain import columnar
from ledger.domain.batch import LogState
from ledger.domain.columns import Columns, of_records
from ledger.domain.identities import RUN_ENTRIES, IdentityIndex
from ledger.domain.scan import scan
from ledger.domain.tree import TreeBuilder
from tollbook.stack import Stack, Unusable, running_stack
from tollbook.stack.kafka import ensure_topic
from tollbook.stack.ports import HOST

log = structlog.get_logger()

PARTITIONS: Final = 4
SAMPLE_S: Final = 0.02
TIMEOUT_S: Final = 900
BASELINE_BATCH: Final = 8_192
GROWTH_BATCHES: Final = 40


@dataclass(frozen=True)
class Arena:
    """A topic and a database for one run."""

    stack: Stack
    topic: str
    database: str

    @property
    def admin(self) -> str:
        """The database for its administrator."""
        return _with_database(self.stack.environment()["TOLLBOOK_POSTGRES"], self.database)

    def environment(self, **more: str) -> dict[str, str]:
        """Settings of a ledger process of this run."""
        env = {**os.environ, **self.stack.environment()}
        env["TOLLBOOK_TOPIC"] = self.topic
        env["TOLLBOOK_PARTITIONS"] = str(PARTITIONS)
        for part in ("POSTGRES", "LEDGER_POSTGRES", "PRICING_POSTGRES"):
            setting = f"TOLLBOOK_{part}"
            env[setting] = _with_database(env[setting], self.database)
        return {**env, "TOLLBOOK_LOG_LEVEL": "WARNING", **more}


def _with_database(dsn: str, database: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


async def arena(stack: Stack, name: str, topic: str = "") -> Arena:
    """Make topic and database, and migrate. With a `topic` that is there, only the database."""
    made = Arena(stack, topic or f"bench.{name}", f"bench_{name}")
    db = await asyncpg.connect(stack.environment()["TOLLBOOK_POSTGRES"])
    try:
        await db.execute(f'CREATE DATABASE "{made.database}"')
    finally:
        await db.close()
    if not topic:
        await make_topic(stack, made.topic)
    await migrate(made, "ledger")
    return made


async def migrate(on: Arena, service: str) -> None:
    """Make the tables of a service. Errors: RuntimeError."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", f"{service}.entrypoints.migrate"],
        env=on.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"migrate failed: {done.stderr}")


async def make_topic(stack: Stack, topic: str) -> None:
    deadline = time.perf_counter() + 30
    while True:
        try:
            await ensure_topic(stack.address("kafka"), topic, PARTITIONS)
        except Unusable:
            # A broker may describe a topic for a moment as if it had no partitions yet.
            if time.perf_counter() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


@asynccontextmanager
async def workers(on: Arena, count: int) -> AsyncIterator[list[psutil.Process]]:
    """Worker processes for as long as the block runs."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            env = on.environment(TOLLBOOK_HEALTH_ADDRESS=f"{HOST}:{free_port()}")
            command = [sys.executable, "-m", "ledger.entrypoints.worker"]
            started.append(await asyncio.to_thread(subprocess.Popen, command, env=env))
        yield [psutil.Process(item.pid) for item in started]
    finally:
        for item in started:
            item.terminate()
        for item in started:
            await asyncio.to_thread(item.wait, 30)


def free_port() -> int:
    """A port that nobody listens on just now."""
    import socket

    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


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


async def full_topic(stack: Stack, events: int) -> str:
    """Make a topic and fill it; gives its name."""
    topic = f"bench.full.{events}"
    await make_topic(stack, topic)
    await usage_load.fill(stack.address("kafka"), topic, PARTITIONS, events, seed=1)
    return topic


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


async def latency(stack: Stack, rate: int, seconds: float) -> dict[str, Any]:
    """Milliseconds from the record's Kafka timestamp until its commit is seen by a reader."""
    on = await arena(stack, f"l{rate}")
    db = await asyncpg.connect(on.admin)
    seen: dict[int, list[tuple[int, float]]] = {}
    try:
        async with workers(on, 1):
            await wait_owned(db)
            producing = asyncio.create_task(
                usage_load.trickle(
                    stack.address("kafka"), on.topic, PARTITIONS, rate, seconds, seed=rate
                )
            )
            while not producing.done() or await _sizes(db) < producing.result():
                for log_id, size in await db.fetch(
                    "SELECT log_id, size FROM ledger.log_head WHERE log_id >= 100 AND size > 0"
                ):
                    steps = seen.setdefault(log_id, [])
                    if not steps or steps[-1][0] != size:
                        steps.append((size, time.time() * 1000))
                await asyncio.sleep(0.0005)
            waits = await waits_ms(db, seen)
    finally:
        await db.close()
    return {"rate_per_s": rate, "events": len(waits), "ms": usage_load.percentiles(waits)}


async def wait_owned(db: Any) -> None:
    deadline = time.perf_counter() + 60
    while await db.fetchval(
        "SELECT count(*) < $1 FROM ledger.log_head WHERE log_id >= 100 AND owner <> ''", PARTITIONS
    ):
        if time.perf_counter() > deadline:
            raise TimeoutError("no worker took the logs")
        await asyncio.sleep(0.05)


async def waits_ms(
    db: Any, seen: dict[int, list[tuple[int, float]]], before: Mapping[int, int] | None = None
) -> list[float]:
    """Milliseconds from each record's Kafka timestamp to the first look that had it.

    `seen`: by log_id, (size, milliseconds of the clock) as they were seen, growing.
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


def growth(sizes: Sequence[int] = (100_000, 1_000_000, 10_000_000)) -> dict[str, float]:
    """Microseconds of processor time that an event costs its owner, by identities known before.

    All that is done for an event but the database's part, whose cost does not depend on them:
    a batch is appended there, and nothing is looked up.
    """
    records = [
        (offset, 0, key, value)
        for offset, (key, value) in enumerate(
            usage_load.values(0, 1, BASELINE_BATCH * GROWTH_BATCHES, seed=3)
        )
    ]
    parts = [
        of_records(records[at : at + BASELINE_BATCH])
        for at in range(0, len(records), BASELINE_BATCH)
    ]
    _owner_cost_us(10_000, parts)  # compiles what is not yet compiled
    return {f"with_{size}": _owner_cost_us(size, parts) for size in sizes}


def _owner_cost_us(known: int, parts: Sequence[Columns]) -> float:
    rng = np.random.default_rng(known)
    index = IdentityIndex()
    for at in range(0, known, RUN_ENTRIES):
        end = min(at + RUN_ENTRIES, known)
        fingerprints = rng.integers(0, 1 << 64, end - at, dtype=np.uint64)
        index.add(fingerprints, np.arange(at, end), end)
    state = LogState(TreeBuilder(), 0, index)
    costs: list[float] = []
    for number, columns in enumerate(parts, 1):
        begun = time.process_time()
        reading = columnar.read(columns)
        suspects = columnar.find_suspects(index, reading)
        columnar.plan(state, reading, suspects, {}, number * BASELINE_BATCH)
        costs.append(time.process_time() - begun)
    return round(statistics.median(costs) / BASELINE_BATCH * 1e6, 3)


async def _run(events: int, rates: Sequence[int], seconds: float) -> dict[str, Any]:
    with running_stack(parts=("kafka", "postgres", "database")) as stack:
        topic = await full_topic(stack, events)
        runs = []
        for count in (1, 2):
            runs.append(await throughput(stack, topic, events, count))
            log.info("throughput", **runs[-1])
        dsn = _with_database(stack.environment()["TOLLBOOK_POSTGRES"], runs[-1]["database"])
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
