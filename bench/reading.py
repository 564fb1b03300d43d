"""How fast the ledger is read: gRPC and Arrow, one reader and several, beside PostgreSQL's COPY.

Readers are processes of their own, as real ones are, and share the machine
with the server and the database. Every reader looks at every leaf's length
and checks that positions follow each other. The baselines read the same leaves
in the same run with `COPY ... TO STDOUT (FORMAT binary)`: the log's own rows,
and a plain table with a row for each event.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.free_port import free_port

from bench import trickle_load, usage_load
from bench.arena import PARTITIONS, Arena, arena, wait_owned, workers
from kernel import cycles, grpcs, memory
from kernel.note import Checkpoint, SignerKey, sign_checkpoint
from kernel.tiles import decode_bundle
from ledger.adapters.archive import Archive
from ledger.adapters.sealing import Policy, Sealer, seal_due
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.ledger.v1 import ledger_pb2_grpc
from tollbook.stack import running_stack
from tollbook.stack.ports import HOST

log = structlog.get_logger()

LOGS: Final = [f"usage-{number}" for number in range(PARTITIONS)]
TIMEOUT_S: Final = 120
SEGMENT: Final = 65_536
ORIGIN: Final = "bench"


class Served(NamedTuple):
    """A ledger server that answers."""

    address: str
    process: psutil.Process


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Processor seconds that these processes have taken."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def database_processes(on: Arena) -> list[psutil.Process]:
    """The database's processes."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(on.database in word for word in process.info["cmdline"] or ())
        and "postgres" in (process.info["cmdline"] or [""])[0]
    ]


@asynccontextmanager
async def server(on: Arena) -> AsyncIterator[Served]:
    """A ledger server for as long as the block runs."""
    address = f"{HOST}:{free_port()}"
    env = on.environment(TOLLBOOK_LEDGER_ADDRESS=address)
    command = [sys.executable, "-m", "ledger.entrypoints.server"]
    process = await asyncio.to_thread(subprocess.Popen, command, env=env)
    try:
        async with grpcs.channel(address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest()
            deadline = time.monotonic() + TIMEOUT_S
            while True:
                answer = await health.Check(asked, wait_for_ready=True, timeout=TIMEOUT_S)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError("the server is not ready")
                await asyncio.sleep(0.1)
        yield Served(address, psutil.Process(process.pid))
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)


async def read_events(stub: Any, name: str) -> tuple[int, int]:
    """(entries, bytes) of a log, read whole."""
    position = size = 0
    async for answer in stub.ReadEvents(pb.ReadEventsRequest(log=name)):
        if answer.first_position != position:
            raise AssertionError(f"{name} jumped from {position} to {answer.first_position}")
        leaves = answer.leaves
        position += len(leaves)
        size += sum(map(len, leaves))
    return position, size


async def read_arrow(stub: Any, name: str) -> tuple[int, int]:
    """(entries, bytes) of a log, read whole as record batches."""
    position = size = 0
    schema: pa.Schema | None = None
    async for answer in stub.ReadArrow(pb.ReadArrowRequest(log=name)):
        if answer.first_position != position:
            raise AssertionError(f"{name} jumped from {position} to {answer.first_position}")
        piece = pa.py_buffer(answer.ipc)
        if schema is None:
            schema = pa.ipc.read_schema(piece)
            continue
        batch = pa.ipc.read_record_batch(piece, schema)
        position = answer.next_position
        size += batch.column("leaf").nbytes - 4 * (batch.num_rows + 1)
    return position, size


READ: Final = {"events": read_events, "arrow": read_arrow}


async def reader(address: str, how: str) -> dict[str, Any]:
    """Read all logs, one after the other, in this process."""
    entries = size = 0
    async with grpcs.channel(address) as channel:
        stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)
        await stub.ListLogs(pb.ListLogsRequest(), wait_for_ready=True)
        begun, cpu = time.time(), time.process_time()
        for name in LOGS:
            found = await READ[how](stub, name)
            entries, size = entries + found[0], size + found[1]
        return {
            "entries": entries,
            "bytes": size,
            "begun": begun,
            "ended": time.time(),
            "cpu_s": time.process_time() - cpu,
        }


async def readers(on: Arena, served: Served, how: str, count: int) -> dict[str, Any]:
    """Several readers at once, each of everything.

    `cpu_ns_an_event` is processor time of each process, which other work on the machine does not
    change: their sum, over the number of cores, is what the parts would take if nothing waited.
    """
    server_cpu, database = cpu_s([served.process]), database_processes(on)
    database_cpu = cpu_s(database)
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.reading", served.address, how, stdout=subprocess.PIPE
        )
        for _ in range(count)
    ]
    found = [json.loads((await item.communicate())[0]) for item in started]
    seconds = max(item["ended"] for item in found) - min(item["begun"] for item in found)
    entries = sum(item["entries"] for item in found)
    return {
        "how": how,
        "readers": count,
        "events_per_s": round(entries / seconds),
        "events_per_s_each": round(
            min(item["entries"] / (item["ended"] - item["begun"]) for item in found)
        ),
        "mb_per_s": round(sum(item["bytes"] for item in found) / seconds / 1e6),
        "cpu_ns_an_event": {
            "reader": round(sum(item["cpu_s"] for item in found) / entries * 1e9),
            "server": round((cpu_s([served.process]) - server_cpu) / entries * 1e9),
            "database": round((cpu_s(database) - database_cpu) / entries * 1e9),
        },
    }


async def sealing(on: Arena) -> dict[str, Any]:
    """Seal all but the newest whole segment of each log; bytes an entry before and after."""
    pool = await asyncpg.create_pool(
        on.admin, min_size=1, max_size=4, server_settings={"search_path": "ledger"}
    )
    keys = []
    for log_id, name, size, root in await pool.fetch(
        "SELECT log_id, name, size, root FROM log_head WHERE log_id >= 100"
    ):
        key = SignerKey.generate(f"{ORIGIN}/{name}")
        note = sign_checkpoint(Checkpoint(key.name, size, root), key)
        await pool.execute(
            "INSERT INTO checkpoint (log_id, size, root, note) VALUES ($1, $2, $3, $4)",
            log_id,
            size,
            root,
            note,
        )
        keys.append(key.verifier)
    begun = time.perf_counter()
    sealer = Sealer(pool, Archive(segments_of(on)), keys, ORIGIN)
    done, failed = await seal_due(sealer, pool, Policy(0, dt.timedelta(0)), 10_000)
    seconds = time.perf_counter() - begun
    kept = await pool.fetchrow(
        "SELECT (SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c WHERE relname ~"
        " '^log_tile_10' AND relkind = 'r')::float8 AS tiles, (SELECT"
        " pg_total_relation_size('identity_run')::float8) AS runs,"
        " (SELECT sum(size)::float8 FROM log_head) AS entries"
    )
    await pool.close()
    if failed is not None:
        raise failed
    entries = sum(one.segment.end - one.segment.start for one in done)
    return {
        "segments": len(done),
        "entries": entries,
        "entries_per_s": round(entries / seconds),
        "table_bytes_an_entry": round(sum(one.segment.table_bytes for one in done) / entries, 1),
        "file_bytes_an_entry": round(sum(one.file_bytes for one in done) / entries, 1),
        "tile_bytes_an_entry": round(kept["tiles"] / kept["entries"], 1),
        "run_bytes_an_entry": round(kept["runs"] / kept["entries"], 1),
    }


def segments_of(on: Arena) -> str:
    """Where this run's sealed segments are."""
    return str(on.stack.home.root / "segments")


def read_files(on: Arena) -> dict[str, int]:
    """Entries a second of who reads the leaves out of the files, without the service."""
    begun = time.perf_counter()
    entries = 0
    for file in sorted(Path(segments_of(on)).rglob("*.parquet")):
        entries += len(pq.read_table(file, columns=["leaf"]))
    return {"files_entries_per_s": round(entries / (time.perf_counter() - begun))}


class _Counter:
    """Takes what COPY gives and keeps nothing."""

    def __init__(self) -> None:
        self.size = 0

    async def write(self, data: bytes) -> None:
        self.size += len(data)


async def _copy_out(db: Any, query: str, events: int) -> dict[str, int]:
    sink = _Counter()
    begun = time.perf_counter()
    await db.copy_from_query(query, output=sink.write, format="binary")
    seconds = time.perf_counter() - begun
    return {"events_per_s": round(events / seconds), "mb_per_s": round(sink.size / seconds / 1e6)}


async def baselines(dsn: str) -> dict[str, Any]:
    """COPY TO STDOUT of the log's rows, and of a plain table with one row an event."""
    db = await asyncpg.connect(dsn)
    try:
        chunks = await db.fetch(
            "SELECT log_id, first_position, leaves FROM ledger.log_chunk WHERE log_id >= 100"
            " ORDER BY log_id, first_position"
        )
        rows = [
            (log_id, position, leaf)
            for log_id, first, data in chunks
            for position, leaf in enumerate(decode_bundle(data), first)
        ]
        await db.execute(
            "CREATE SCHEMA baseline; CREATE TABLE baseline.event (log_id int, position bigint,"
            " leaf bytea, PRIMARY KEY (log_id, position))"
        )
        await db.copy_records_to_table("event", schema_name="baseline", records=rows)
        await db.execute("CHECKPOINT")
        order = "ORDER BY log_id, position"
        return {
            "copy_out_row_an_event": await _copy_out(
                db, f"SELECT log_id, position, leaf FROM baseline.event {order}", len(rows)
            ),
            "copy_out_the_logs_rows": await _copy_out(
                db,
                "SELECT log_id, first_position, entries, leaves FROM ledger.log_chunk"
                " WHERE log_id >= 100 ORDER BY log_id, first_position",
                len(rows),
            ),
        }
    finally:
        await db.execute("DROP SCHEMA IF EXISTS baseline CASCADE")
        await db.close()


async def _follow(stub: Any, name: str, seen: list[tuple[int, int, float]]) -> None:
    """Note when each message of a log came: (first position, end, seconds since 1970)."""
    request = pb.ReadEventsRequest(log=name, follow=True)
    async for answer in stub.ReadEvents(request):
        seen.append((answer.first_position, answer.next_position, time.time()))


async def follow(on: Arena, address: str, rate: int, seconds: float) -> dict[str, Any]:
    """Milliseconds from a commit until a follower has the entry."""
    db = await asyncpg.connect(on.admin)
    seen: dict[str, list[tuple[int, int, float]]] = {name: [] for name in LOGS}
    try:
        async with workers(on, 1), grpcs.channel(address) as channel:
            await wait_owned(db)
            stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)
            tasks = [asyncio.create_task(_follow(stub, name, seen[name])) for name in LOGS]
            cycles.settle()
            sent = await trickle_load.trickle(
                on.stack.address("kafka"), on.topic, PARTITIONS, rate, seconds, seed=rate
            )
            deadline = time.monotonic() + TIMEOUT_S
            while sum(parts[-1][1] if parts else 0 for parts in seen.values()) < sent:
                if time.monotonic() > deadline:
                    raise TimeoutError("the followers did not see all")
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
        waits = [wait for name in LOGS for wait in await _waits(db, name, seen[name])]
    finally:
        await db.close()
    return {"rate": rate, "events": sent, "ms": usage_load.percentiles(waits)}


async def _waits(db: Any, name: str, seen: Sequence[tuple[int, int, float]]) -> list[float]:
    """A wait for each entry. The clock starts where its row was written, before the commit."""
    rows = await db.fetch(
        "SELECT first_position, entries, extract(epoch FROM committed_at)::float8 AS at"
        " FROM ledger.log_chunk JOIN ledger.log_head USING (log_id) WHERE name = $1"
        " ORDER BY first_position",
        name,
    )
    waits: list[float] = []
    message = 0
    for first, entries, at in rows:
        for position in range(first, first + entries):
            while seen[message][1] <= position:
                message += 1
            waits.append((seen[message][2] - at) * 1000)
    return waits


async def _run(events: int, rates: Sequence[int], seconds: float) -> dict[str, Any]:
    with running_stack(parts=("kafka", "topic", "postgres", "database")) as stack:
        on = await arena(stack, "reading")
        db = await asyncpg.connect(on.admin)
        await db.execute(
            f"ALTER TABLE ledger.log_head ALTER COLUMN segment_entries SET DEFAULT {SEGMENT}"
        )
        await usage_load.fill(
            stack.address("kafka"), on.topic, PARTITIONS, events, 1, usage_load.distinct_values
        )
        async with workers(on, 2):
            deadline = time.monotonic() + TIMEOUT_S
            while await db.fetchval("SELECT sum(size) < $1 FROM ledger.log_head", events):
                if time.monotonic() > deadline:
                    raise TimeoutError("the log did not fill")
                await asyncio.sleep(0.1)
        await db.execute("CHECKPOINT")
        await db.close()
        found: dict[str, Any] = {"events": events, "baselines": await baselines(on.admin)}
        async with server(on) as served:
            runs = [("events", 1), ("events", 2), ("events", 4), ("arrow", 1), ("arrow", 2)]
            await readers(on, served, "events", 1)  # what is read first comes from the disk
            found["reading"] = []
            for how, count in runs:
                found["reading"].append(await readers(on, served, how, count))
                log.info("reading", **found["reading"][-1])
        found["sealing"] = await sealing(on)
        async with server(on) as served:
            await readers(on, served, "events", 1)
            found["reading_sealed"] = [
                await readers(on, served, "events", 1),
                await readers(on, served, "arrow", 1),
            ]
        found["files"] = await asyncio.to_thread(read_files, on)
        log.info("sealed", **found["sealing"], **found["files"])
        found["follow"] = []
        for rate in rates:
            slow = await arena(stack, f"follow_{rate}")
            async with server(slow) as served:
                found["follow"].append(await follow(slow, served.address, rate, seconds))
                log.info("follow", **found["follow"][-1])
    return found


def run(
    events: int = 1_000_000, rates: Sequence[int] = (1_000, 10_000), seconds: float = 8
) -> dict[str, Any]:
    """Measure; gives figures for JSON."""
    return asyncio.run(_run(events, rates, seconds))


if __name__ == "__main__":
    memory.keep_freed()  # as the command line's own bulk read does
    print(json.dumps(asyncio.run(reader(*sys.argv[1:3]))))
