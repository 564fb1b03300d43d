"""A superuser changes rows by hand, in every way: `ledger verify` names log and position."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from tests.integration.test_tamper_evidence import WAIT_S, append, ledger, published_size, until
from tests.unit.audit.world import Producer, usage_event

from kernel import leaf as leaves
from kernel.merkle import leaf_hash
from kernel.note import VerifierKey
from kernel.tiles import decode_bundle, encode_bundle
from ledger.adapters.tile_store import TileStore
from ledger.domain.tree import TreeBuilder
from tollbook.checking.sources import Sources
from tollbook.checking.verdict import Verdict
from tollbook.checking.verify import verify
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.stack.control import Stack

pytestmark = pytest.mark.integration

EVENTS = 700
LOG = "usage-0"
LOG_ID = 100
HELD = ("ledger-worker", "ledger-signer", "ledger-tiles")
KEPT = (
    "log_chunk",
    "log_tile",
    "log_pin",
    "checkpoint",
    "log_aside",
    "append_key",
    "log_exception",
)
HEAD = "size, next_offset, root, frontier, accepted, duplicate, conflict, rejected"


async def produce(stack: Stack, partition: int, values: list[bytes]) -> None:
    environment = stack.environment()
    producer = AIOKafkaProducer(bootstrap_servers=environment["TOLLBOOK_KAFKA"], acks="all")
    await producer.start()
    try:
        topic = environment["TOLLBOOK_TOPIC"]
        for value in values:
            await producer.send(topic, value, key=b"acme", partition=partition)
        await producer.flush()
    finally:
        await producer.stop()


def records(stream: str, count: int) -> list[bytes]:
    made = Producer(stream)
    return [made.record(usage_event(f"{stream}-{n}", "acme", plain=n)) for n in range(count)]


async def until_logged(stack: Stack, sizes: dict[str, int]) -> None:
    """Until the logs have these sizes, and that is signed and published."""
    async with ledger(stack) as stub:
        for log, size in sizes.items():
            request = pb.GetCheckpointRequest(log=log, min_size=size)

            async def signed(request: pb.GetCheckpointRequest = request) -> bool:
                try:
                    await stub.GetCheckpoint(request, timeout=10)
                except Exception:
                    return False
                return True

            await until(f"{log} is signed at {size}", signed)

            async def shown(log: str = log, size: int = size) -> bool:
                return await published_size(stack, log) >= size

            await until(f"{log} is published at {size}", shown)


class Filled:
    """What `fill` wrote."""

    aside_position = 0
    """In the control log."""


async def fill(stack: Stack) -> None:
    values = records("verified", EVENTS - 3)
    values[300:300] = [b"\xff rubbish", b"x" * 70_000]  # rejected; one of them stands aside
    values.append(values[5])  # a repeat
    async with ledger(stack) as stub:
        await append(stub, 5)
        Filled.aside_position = await append(stub, 1, payload=b"y" * 70_000) - 1
        await produce(stack, 0, values)
        await until_logged(stack, {LOG: EVENTS})
        control = await append(stub, 300)
    await until_logged(stack, {"control": control})


@pytest.fixture(scope="module")
def stack(evidence_stack: Stack) -> Iterator[Stack]:
    asyncio.run(fill(evidence_stack))
    for part in HELD:
        evidence_stack.hold(part)
    yield evidence_stack
    for part in reversed(HELD):
        evidence_stack.release(part)


@asynccontextmanager
async def superuser(stack: Stack) -> AsyncIterator[Any]:
    """A superuser with all triggers switched off; in the end all is as it was."""
    db = await asyncpg.connect(
        stack.environment()["TOLLBOOK_POSTGRES"], server_settings={"search_path": "ledger"}
    )
    head = await db.fetch(f"SELECT log_id, {HEAD} FROM log_head")
    for table in KEPT:
        await db.execute(f"CREATE TEMP TABLE kept_{table} AS SELECT * FROM {table}")
    await triggers(db, "DISABLE TRIGGER ALL")
    try:
        yield db
    finally:
        await triggers(db, "DISABLE TRIGGER ALL")
        for table in KEPT:
            await db.execute(f"DELETE FROM {table}")
            await db.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
        for row in head:
            await db.execute(
                f"UPDATE log_head SET ({HEAD}) = ($2, $3, $4, $5, $6, $7, $8, $9)"
                " WHERE log_id = $1",
                *row,
            )
        await triggers(db, "ENABLE ALWAYS TRIGGER ALL")
        await db.close()


async def triggers(db: Any, what: str) -> None:
    tables = await db.fetch(
        "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE tgname LIKE 'refuse_%'"
    )
    for [table] in tables:
        for name in ("refuse_rows", "refuse_truncate"):
            await db.execute(f"ALTER TABLE {table} {what.replace('ALL', name)}")


async def check(stack: Stack, *, tiles: bool = True, kafka: bool = True) -> Verdict:
    environment = stack.environment()
    return await verify(
        environment["TOLLBOOK_LEDGER_POSTGRES"],
        Sources(
            keys_of(stack),
            stack.home.root / "signer" / "signed.json",
            TileStore(environment["TOLLBOOK_TILES_URL"]) if tiles else None,
            environment["TOLLBOOK_KAFKA"] if kafka else "",
            environment["TOLLBOOK_TOPIC"],
        ),
    )


def keys_of(stack: Stack) -> list[VerifierKey]:
    lines = Path(stack.environment()["TOLLBOOK_VERIFIER_KEYS"]).read_text().splitlines()
    return [VerifierKey.parse(line) for line in lines]


def told(verdict: Verdict) -> list[str]:
    """Findings but for those of the triggers."""
    return [str(found) for found in verdict.findings if "triggers" not in found.what]


async def chunk_at(db: Any, position: int, log_id: int = LOG_ID) -> tuple[int, list[bytes]]:
    row = await db.fetchrow(
        "SELECT first_position, leaves FROM log_chunk WHERE log_id = $1 AND first_position <= $2"
        " ORDER BY first_position DESC LIMIT 1",
        log_id,
        position,
    )
    return row[0], decode_bundle(row[1])


async def put(db: Any, position: int, leaf: bytes, log_id: int = LOG_ID) -> bytes:
    """Put another leaf at a position; gives the one that stood there."""
    first, part = await chunk_at(db, position, log_id)
    old, part[position - first] = part[position - first], leaf
    await db.execute(
        "UPDATE log_chunk SET leaves = $3 WHERE log_id = $1 AND first_position = $2",
        log_id,
        first,
        encode_bundle(part),
    )
    return old


async def leaf_at(db: Any, position: int, log_id: int = LOG_ID) -> bytes:
    first, part = await chunk_at(db, position, log_id)
    return part[position - first]


def forged(leaf: bytes) -> bytes:
    return leaf[:-1] + bytes([leaf[-1] ^ 1])


async def all_leaves(db: Any, log_id: int) -> list[bytes]:
    rows = await db.fetch(
        "SELECT leaves FROM log_chunk WHERE log_id = $1 ORDER BY first_position", log_id
    )
    return [leaf for row in rows for leaf in decode_bundle(row[0])]


async def make_consistent(db: Any, log_id: int) -> None:
    """Make tiles and head anew from the rows, as a patient forger would."""
    tree = TreeBuilder()
    made = tree.extend([leaf_hash(leaf) for leaf in await all_leaves(db, log_id)])
    await db.execute("DELETE FROM log_tile WHERE log_id = $1", log_id)
    await db.executemany(
        "INSERT INTO log_tile VALUES ($1, $2, $3, $4)",
        [(log_id, tile.level, tile.tile_index, tile.hashes) for tile in made],
    )
    root, frontier = tree.root_and_frontier()
    await db.execute(
        "UPDATE log_head SET accepted = accepted + $2 - size, size = $2, root = $3, frontier = $4"
        " WHERE log_id = $1",
        log_id,
        tree.size,
        root,
        frontier,
    )


async def test_an_honest_ledger_differs_in_nothing(stack: Stack) -> None:
    for tiles in (True, False):
        verdict = await check(stack, tiles=tiles)
        assert verdict.ok, list(map(str, verdict.findings))
        assert verdict.sizes[LOG] == EVENTS


Change = Callable[[Any], Awaitable[object]]


async def edit(db: Any, position: int) -> None:
    await put(db, position, forged(await leaf_at(db, position)))


async def swap(db: Any, one: int, other: int) -> None:
    await put(db, other, await put(db, one, await leaf_at(db, other)))


async def delete(db: Any, position: int) -> None:
    """Delete the row that holds a position, and nothing before it."""
    first, part = await chunk_at(db, position)
    await db.execute(
        "DELETE FROM log_chunk WHERE log_id = $1 AND first_position = $2", LOG_ID, first
    )
    if position > first:
        await db.execute(
            "INSERT INTO log_chunk VALUES ($1, $2, $3, $4)",
            LOG_ID,
            first,
            position - first,
            encode_bundle(part[: position - first]),
        )


async def add(db: Any, count: int = 1, log_id: int = LOG_ID) -> None:
    """Append rows after the last, each a plausible record."""
    for _ in range(count):
        size = await db.fetchval(
            "SELECT max(first_position + entries) FROM log_chunk WHERE log_id = $1", log_id
        )
        template = leaves.decode(await leaf_at(db, size - 1, log_id))
        value = Producer(f"forged-{size}").record(usage_event(f"forged-{size}", "acme", plain=1))
        leaf = leaves.encode(1, 0, template.offset + 1, template.timestamp_ms, b"acme", value)
        await db.execute(
            "INSERT INTO log_chunk VALUES ($1, $2, 1, $3)", log_id, size, encode_bundle([leaf])
        )


async def cut_off(db: Any, size: int) -> None:
    """Make a log end at a size, as if it had never been longer."""
    first, part = await chunk_at(db, size)
    await db.execute(
        "DELETE FROM log_chunk WHERE log_id = $1 AND first_position >= $2", LOG_ID, first
    )
    if size > first:
        await db.execute(
            "INSERT INTO log_chunk VALUES ($1, $2, $3, $4)",
            LOG_ID,
            first,
            size - first,
            encode_bundle(part[: size - first]),
        )
    await db.execute("DELETE FROM checkpoint WHERE log_id = $1 AND size > $2", LOG_ID, size)
    await db.execute(
        "UPDATE log_head SET duplicate = 0, accepted = size - rejected WHERE log_id = $1", LOG_ID
    )
    await make_consistent(db, LOG_ID)


@pytest.mark.parametrize(
    ("position", "where"),
    [(0, "position 0"), (511, "position 511")],
)
async def test_an_edited_entry(position: int, where: str, stack: Stack) -> None:
    async with superuser(stack) as db:
        await edit(db, position)
        verdict = await check(stack)
        assert told(verdict)[0].startswith(f"{LOG} {where}: the entry is altered")
        # Also when the triggers are on again, and there is nothing but the database.
        await triggers(db, "ENABLE ALWAYS TRIGGER ALL")
        [first, *_] = (await check(stack, tiles=False, kafka=False)).findings
        assert str(first).startswith(f"{LOG} {where}: the entry is altered")


async def test_an_edited_entry_of_the_last_bundle(stack: Stack) -> None:
    """No tile of the database covers it; the published one, or Kafka, does."""
    async with superuser(stack) as db:
        await edit(db, EVENTS - 3)
        for sources in ({}, {"kafka": False}, {"tiles": False}):
            verdict = await check(stack, **sources)
            assert any(
                line.startswith(f"{LOG} position {EVENTS - 3}: ") for line in told(verdict)
            ), told(verdict)
        alone = await check(stack, tiles=False, kafka=False)
        [found, *_] = [found for found in alone.findings if "root" in found.what]
        assert found.place == LOG
        assert found.position is not None
        assert found.end_position is not None
        assert found.position <= EVENTS - 3 < found.end_position
        assert "the signed checkpoint" in found.what


@pytest.mark.parametrize("position", [0, 300, EVENTS - 1])
async def test_a_deleted_row(position: int, stack: Stack) -> None:
    async with superuser(stack) as db:
        await delete(db, position)
        [first, *_] = told(await check(stack, tiles=False, kafka=False))
        assert first.startswith(f"{LOG} position"), first
        assert f" {position}" in first.partition(":")[0]
        assert "no row of log_chunk holds it" in first


async def test_swapped_entries(stack: Stack) -> None:
    async with superuser(stack) as db:
        await swap(db, 7, 400)
        lines = told(await check(stack, kafka=False))
        assert lines[0].startswith(f"{LOG} position 7: the entry is altered")
        assert any(line.startswith(f"{LOG} position 400: the entry is altered") for line in lines)


async def test_a_row_appended_by_hand(stack: Stack) -> None:
    async with superuser(stack) as db:
        await add(db)
        [first, *_] = told(await check(stack, tiles=False, kafka=False))
        assert first.startswith(f"{LOG} position {EVENTS}: rows of log_chunk hold it")
        # With the head moved as a worker would, only the broker knows better.
        await make_consistent(db, LOG_ID)
        assert told(await check(stack, tiles=False, kafka=False)) == []
        [first] = told(await check(stack))
        assert first.startswith(f"{LOG} position {EVENTS}: Kafka has no record at its offset")


async def test_a_row_appended_by_hand_to_a_log_of_append(stack: Stack) -> None:
    async with superuser(stack) as db:
        size = await db.fetchval("SELECT size FROM log_head WHERE log_id = 1")
        leaf = leaves.decode(await leaf_at(db, size - 1, 1))
        grant = leaves.encode(1, 0, size, leaf.timestamp_ms, b"forged", b"grant")
        await db.execute(
            "INSERT INTO log_chunk VALUES (1, $1, 1, $2)", size, encode_bundle([grant])
        )
        await make_consistent(db, 1)
        [first] = told(await check(stack))
        assert first.startswith(f"control position {size}: no idempotency key leads to it")


async def test_an_end_cut_off_with_all_its_checkpoints(stack: Stack) -> None:
    async with superuser(stack) as db:
        await cut_off(db, 600)
        [first, *_] = told(await check(stack, tiles=False, kafka=False))
        assert first.startswith(f"{LOG} positions 600 to {EVENTS - 1}: the signer's memory has")
        lines = told(await check(stack, tiles=False))
        assert any("which the head has passed, is not in the log" in line for line in lines)


async def test_an_entry_altered_together_with_all_tiles_and_the_head(stack: Stack) -> None:
    async with superuser(stack) as db:
        await edit(db, 130)
        await make_consistent(db, LOG_ID)
        lines = told(await check(stack, kafka=False))
        assert any(line.startswith(f"{LOG} position 130: ") for line in lines), lines
        [found, *_] = [
            found
            for found in (await check(stack, tiles=False, kafka=False)).findings
            if "another root" in found.what
        ]
        assert found.position is not None
        assert found.end_position is not None
        assert found.position <= 130 < found.end_position


async def test_an_altered_tile(stack: Stack) -> None:
    async with superuser(stack) as db:
        hashes = await db.fetchval(
            "SELECT hashes FROM log_tile WHERE log_id = $1 AND level = 0 AND tile_index = 1", LOG_ID
        )
        await db.execute(
            "UPDATE log_tile SET hashes = $2 WHERE log_id = $1 AND level = 0 AND tile_index = 1",
            LOG_ID,
            hashes[:64] + bytes(32) + hashes[96:],
        )
        assert any("position 258" in line for line in told(await check(stack, tiles=False)))
        assert any("position 258" in line for line in told(await check(stack)))


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE log_aside SET value = 'z' WHERE log_id = 100", f"{LOG} position 301: log_aside"),
        ("DELETE FROM log_aside WHERE log_id = 1", "control position {aside}: its record stands"),
        ("DELETE FROM append_key WHERE log_id = 1 AND position = 3", "control position 3: no ide"),
        ("DELETE FROM log_exception WHERE position = 300", f"{LOG} position 300: log_exception"),
        ("DELETE FROM log_pin WHERE log_id = 100", f"{LOG}: it has no pin from position 0"),
        (
            "UPDATE log_pin SET control_size = control_size - 1 WHERE log_id = 100",
            f"{LOG} position 0: its pin is not the one of what was published",
        ),
        (
            "UPDATE checkpoint SET note = note || 'x' WHERE log_id = 100 AND size = 700",
            f"{LOG} checkpoint 700: no key given signed it",
        ),
        ("UPDATE log_head SET root = sha256('') WHERE log_id = 100", f"{LOG}"),
        (
            "UPDATE log_head SET accepted = accepted - 1, duplicate = duplicate + 1"
            " WHERE log_id = 100",
            f"{LOG}: the head counts",
        ),
    ],
)
async def test_what_lies_beside_the_log(statement: str, where: str, stack: Stack) -> None:
    async with superuser(stack) as db:
        await db.execute(statement)
        lines = told(await check(stack, kafka=False))
        where = where.format(aside=Filled.aside_position)
        assert any(where in line for line in lines), lines


async def test_triggers_that_are_off(stack: Stack) -> None:
    async with superuser(stack):
        assert {found.place for found in (await check(stack, kafka=False)).findings} >= {
            "log_chunk",
            "log_chunk_100",
            "log_tile_1",
            "checkpoint",
        }
    assert (await check(stack, kafka=False)).ok


async def test_the_command(stack: Stack) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tollbook.cli", "ledger", "verify"],
            env={
                **os.environ,
                **stack.environment(),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )

    done = await asyncio.to_thread(run)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verify: nothing differs (1" in done.stdout
    async with superuser(stack) as db:
        await edit(db, 33)
        done = await asyncio.to_thread(run)
    assert done.returncode == 1
    assert f"DIFFERS: {LOG} position 33: the entry is altered" in done.stdout
