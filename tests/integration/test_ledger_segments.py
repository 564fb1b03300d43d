"""Sealed segments on the real database: proved before they leave it, read as before, never lost."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from tests.integration.ledger_server import ledger_server
from tests.integration.ledger_world import WAIT_S, LedgerWorld, ledger_world, until
from tests.unit.ledger import builders

from kernel import leaf as leaf_format
from kernel import merkle
from kernel.merkle import EMPTY_ROOT
from kernel.migrations import MigrationError
from kernel.note import Checkpoint, SignerKey, sign_checkpoint
from kernel.tiles import decode_bundle, encode_bundle
from ledger.adapters import store
from ledger.adapters.held_log import HeldLog
from ledger.adapters.leaves import LeafReader
from ledger.adapters.migrate import SCHEMA
from ledger.adapters.sealing import Policy, Sealer, SealError, seal_due, segments_of
from ledger.domain.batch import Batch, LogState, Record, Suspects, plan, scan_records
from ledger.domain.identities import IdentityIndex
from ledger.domain.streams import StreamState
from ledger.domain.tree import TreeBuilder
from tollbook.checking.sources import Sources
from tollbook.checking.verify import verify
from tollbook.cli.root import root
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.stack import Stack

pytestmark = pytest.mark.integration

SEGMENT = 1_024
ORIGIN = "segments.test"
ALL = Policy(keep_entries=0, older_than=dt.timedelta(0))


@pytest.fixture
async def world(ground: Stack, tmp_path: Path) -> AsyncIterator[LedgerWorld]:
    async with ledger_world(ground, tmp_path) as made:
        await made.db.execute(
            f"ALTER TABLE log_head ALTER COLUMN segment_entries SET DEFAULT {SEGMENT}"
        )
        yield made


class Signed:
    """A key, and checkpoints of usage-0 signed by it."""

    def __init__(self, world: LedgerWorld) -> None:
        self.world = world
        self.key = SignerKey.generate(f"{ORIGIN}/usage-0")

    async def sign(self) -> None:
        """As the signer does: the head as it is now, once for each size."""
        head = await self.world.head()
        if await self.world.db.fetchval(
            "SELECT EXISTS (SELECT FROM checkpoint WHERE log_id = $1 AND size = $2)",
            head["log_id"],
            head["size"],
        ):
            return
        note = sign_checkpoint(Checkpoint(self.key.name, head["size"], head["root"]), self.key)
        await self.world.db.execute(
            "INSERT INTO checkpoint (log_id, size, root, note) VALUES ($1, $2, $3, $4)",
            head["log_id"],
            head["size"],
            head["root"],
            note,
        )

    async def seal(self, policy: Policy = ALL) -> list[tuple[int, int]]:
        """Seal what is due. Errors: the first one of a segment."""
        sealer = Sealer(self.world.db, self.world.archive(), [self.key.verifier], ORIGIN)
        done, failed = await seal_due(sealer, self.world.db, policy, 100)
        if failed is not None:
            raise failed
        return [(one.segment.start, one.segment.end) for one in done]


async def parts(world: LedgerWorld) -> list[str]:
    """The tables that hold leaves of usage-0."""
    rows = await world.db.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits"
        " WHERE inhparent = 'log_chunk_100'::regclass ORDER BY 1"
    )
    return [row["name"] for row in rows]


async def test_sealed_leaves_are_read_proved_and_known_as_before(world: LedgerWorld) -> None:
    signed = Signed(world)
    sent = list(world.values(0, 5_000))
    async with world.workforce(batch_records=700):
        await world.deliver(0, sent)
        await world.wait_read()
        leaves = await world.entries(0)
        before = await world.head()
        size = before["size"]
        await signed.sign()
        gone = [(at, at + SEGMENT) for at in range(0, size // SEGMENT * SEGMENT - SEGMENT, SEGMENT)]
        assert len(gone) >= 3
        # The newest whole segment stays, and so does the one that is being written.
        assert await signed.seal() == gone
        assert await signed.seal() == []
        kept = [int(name.rpartition("_")[2]) for name in await parts(world)]
        assert min(kept) == gone[-1][1]
        # The worker goes on, also over repeats of what is in files: all are known. (The broker may
        # have some twice, when it answered late; they are repeats too.)
        await world.deliver(0, [*sent[:1500], *world.values(0, 10, seed=2)])
        await world.wait_read()
        head = await world.head()
        assert (head["accepted"], head["conflict"], head["rejected"]) == (5_010, 0, 0)
        assert head["duplicate"] >= 1_500
    # So does one that begins anew, with no saved run of identities to begin from.
    async with world.workforce():
        await world.deliver(0, sent[1_000:1_100])
        await world.wait_read()
        again = await world.head()
        assert again["accepted"] == 5_010
        assert again["duplicate"] >= head["duplicate"] + 100
    async with ledger_server(world) as server:
        messages = await server.read(log="usage-0", from_position=500, max_batch=300)
        found = [leaf for answer in messages for leaf in answer.leaves]
        assert found[: size - 500] == leaves[500:]
        entry = await server.stub.GetEntry(pb.GetEntryRequest(log="usage-0", position=77))
        assert entry.leaf == leaves[77]
        proof = await server.stub.GetInclusionProof(
            pb.GetInclusionProofRequest(log="usage-0", position=77, tree_size=size)
        )
        merkle.verify_inclusion(
            77, size, merkle.leaf_hash(leaves[77]), list(proof.proof), before["root"]
        )
        answer = await server.stub.ListSegments(pb.ListSegmentsRequest(log="usage-0"))
        shown = {one.first_position: one for one in answer.segments}
        assert [at for at, one in shown.items() if one.sealed] == [start for start, _ in gone]
        assert [one.first_position for one in answer.segments] == sorted(shown)
        for start in (0, 1024, 2048):
            one = shown[start]
            assert one.start_root == merkle.root_of(map(merkle.leaf_hash, leaves[:start]))
            assert one.end_root == merkle.root_of(map(merkle.leaf_hash, leaves[: start + 1024]))
            file = world.folder / "segments" / one.file
            assert hashlib.sha256(file.read_bytes()).digest() == one.sha256
            # Anybody's Parquet reader finds an account's leaves in it.
            table = pl.read_parquet(file)
            assert table["leaf"].to_list() == leaves[start : start + 1024]
            assert table["position"].to_list() == list(range(start, start + 1024))
            keys = [leaf_format.decode(leaf).key.decode() for leaf in table["leaf"]]
            assert table["account_id"].to_list() == keys
            assert set(table["event_time_ns"]) == {1_800_000_000 * 10**9}
        ask = CliRunner(env={"TOLLBOOK_LEDGER_ADDRESS": server.address})
        done = await asyncio.to_thread(ask.invoke, root, ["ledger", "segments", "--log", "usage-0"])
        assert done.exit_code == 0, done.output
        for start in (0, 1024, 2048):
            assert f"{shown[start].file}" in done.output
            assert shown[start].end_root.hex() in done.output
        # Whoever checks the database reads on into the files, and sees when they were changed.
        sources = Sources(
            [signed.key.verifier], segments=str(world.folder / "segments"), topic=world.topic
        )
        verdict = await verify(world.dsn(), sources)
        assert [str(finding) for finding in verdict.findings] == []
        assert verdict.sizes["usage-0"] == again["size"]
        forge(world.folder / "segments" / shown[2048].file, 100)
        verdict = await verify(world.dsn(), sources)
        assert [(one.place, one.position) for one in verdict.findings] == [("usage-0", 2_148)]
        # A file that went away is said by name, and what is elsewhere is read all the same.
        (world.folder / "segments" / shown[1024].file).rename(world.folder / "elsewhere")
    async with ledger_server(world) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.read(log="usage-0")
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert shown[1024].file in str(caught.value.details())
        assert shown[1024].sha256.hex() in str(caught.value.details())
        rest = await server.read(log="usage-0", from_position=2048, to_position=2100)
        assert [leaf for answer in rest for leaf in answer.leaves] == leaves[2048:2100]
        proof = await server.stub.GetInclusionProof(
            pb.GetInclusionProofRequest(log="usage-0", position=1_500, tree_size=size)
        )
        assert proof.leaf_hash == merkle.leaf_hash(leaves[1_500])
    # A worker that must compare a repeat with a leaf in it says so and waits; then it goes on.
    async with world.workforce():
        await world.deliver(0, sent[1_500:1_510])

        async def halted() -> str:
            return str((await world.head())["halted"])

        assert shown[1024].file in await until("the log is halted", halted)
        assert (await world.head())["size"] == again["size"]
        (world.folder / "elsewhere").rename(world.folder / "segments" / shown[1024].file)
        await world.wait_read()
        head = await world.head()
        assert (head["accepted"], head["conflict"], head["halted"]) == (5_010, 0, "")


def forge(file: Path, row: int) -> None:
    """Change one leaf of a sealed file, and leave all else as it was."""
    table = pq.read_table(file)
    leaves = table["leaf"].to_pylist()
    leaves[row] = leaves[row][:-1] + b"?"
    at = table.schema.get_field_index("leaf")
    changed = table.set_column(at, table.schema.field(at), pa.array(leaves, pa.binary()))
    pq.write_table(changed, file, row_group_size=16_384, compression="zstd")


async def test_the_policy_keeps_what_is_new(world: LedgerWorld) -> None:
    signed = Signed(world)
    async with world.workforce():
        await world.produce(4_500)
        await world.wait_read()
    assert await signed.seal(Policy(0, dt.timedelta(hours=1))) == []
    with pytest.raises(SealError, match="no checkpoint"):
        await signed.seal()
    await signed.sign()
    size = (await world.head())["size"]
    assert await signed.seal(Policy(size - 1_024, dt.timedelta(0))) == [(0, 1024)]
    assert await signed.seal(Policy(size - 2_047, dt.timedelta(0))) == []
    assert await signed.seal(Policy(size - 2_048, dt.timedelta(0))) == [(1024, 2048)]
    # The command does the same, by its settings or by what it is told.
    verifiers = world.folder / "verifiers"
    verifiers.write_text(f"{signed.key.verifier}\n")
    settings = {
        "TOLLBOOK_POSTGRES": world.dsn("TOLLBOOK_POSTGRES"),
        "TOLLBOOK_VERIFIER_KEYS": str(verifiers),
        "TOLLBOOK_ORIGIN": ORIGIN,
        "TOLLBOOK_LEDGER_SEGMENTS": str(world.folder / "segments"),
        "TOLLBOOK_SEAL_OLDER_THAN_H": "0",
    }
    runner = CliRunner(env=settings)
    done = await asyncio.to_thread(runner.invoke, root, ["ledger", "seal"])
    assert (done.exit_code, done.output) == (0, "0 segments sealed\n")
    done = await asyncio.to_thread(runner.invoke, root, ["ledger", "seal", "--keep", "0"])
    assert done.exit_code == 0, done.output
    assert "usage-0 [2048, 3072): usage-0/" in done.output
    assert "1 segments sealed" in done.output


async def change(world: LedgerWorld, position: int) -> None:
    """A superuser changes a leaf by hand, triggers off."""
    async with world.db.acquire() as db, db.transaction():
        await db.execute("ALTER TABLE log_chunk_100_1024 DISABLE TRIGGER ALL")
        first, data = await db.fetchrow(
            "SELECT first_position, leaves FROM log_chunk WHERE log_id = 100"
            " AND first_position <= $1 ORDER BY first_position DESC LIMIT 1",
            position,
        )
        leaves = decode_bundle(data)
        leaves[position - first] = leaves[position - first][:-1] + b"?"
        await db.execute(
            "UPDATE log_chunk SET leaves = $2 WHERE log_id = 100 AND first_position = $1",
            first,
            encode_bundle(leaves),
        )
        await db.execute("ALTER TABLE log_chunk_100_1024 ENABLE ALWAYS TRIGGER refuse_rows")


async def test_what_was_changed_by_hand_is_not_sealed_but_named(world: LedgerWorld) -> None:
    signed = Signed(world)
    async with world.workforce():
        await world.produce(4_500)
        await world.wait_size(4_500)
    await signed.sign()
    await change(world, 1_300)
    with pytest.raises(SealError, match="position 1300 is not"):
        await signed.seal()
    # What came before it is sealed; it and all after it stay as they are.
    assert (await parts(world))[0] == "log_chunk_100_1024"
    assert await world.db.fetchval("SELECT count(*) FROM log_segment") == 1
    # A checkpoint that another key signed proves nothing.
    stranger = Signed(world)
    with pytest.raises(SealError, match="no signature by the key"):
        await stranger.seal()


async def test_new_and_sealed_segments_are_as_append_only_as_all_else(world: LedgerWorld) -> None:
    signed = Signed(world)
    async with world.workforce():
        await world.produce(3_100)
        await world.wait_size(3_100)
    await signed.sign()
    await signed.seal()
    # How many more lie ready ahead of the end depends on where the batches happened to be cut.
    living = await parts(world)
    assert {"log_chunk_100_2048", "log_chunk_100_3072"} <= set(living)
    tables = [*living, "log_chunk_100", "log_tile_100", "log_segment", "log_detached"]
    service = await asyncpg.connect(world.dsn(), server_settings={"search_path": "ledger"})
    try:
        for table in tables:
            for statement in (
                f"UPDATE {table} SET log_id = log_id",
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
                f"DROP TABLE {table}",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await service.execute(statement)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute("ALTER TABLE log_chunk_100 DETACH PARTITION log_chunk_100_3072")
        for table in ("log_segment", "log_detached"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(f"INSERT INTO {table} (log_id) VALUES (1)")
        with pytest.raises(asyncpg.InvalidParameterValueError, match="not near"):
            await service.fetchval("SELECT open_segments(100, 1099511627776)")
    finally:
        await service.close()
    async with world.db.acquire() as db:
        for role in ("origin", "replica"):
            await db.execute(f"SET session_replication_role = {role}")
            for table in tables:
                # Row triggers need a row to fire on.
                if not await db.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):
                    continue
                for statement in (f"UPDATE {table} SET log_id = log_id", f"DELETE FROM {table}"):
                    with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
                        await db.execute(statement)
            for table in await parts(world):
                with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
                    await db.execute(f"TRUNCATE {table}")
        await db.execute("RESET session_replication_role")


async def test_a_log_of_an_earlier_release_is_its_first_segment(
    world: LedgerWorld, tmp_path: Path
) -> None:
    """What the first migration made, with leaves in it, is brought to today and goes on."""
    name = f"{world.database}_old"
    await world.db.execute(f'CREATE DATABASE "{name}"')
    admin = world.dsn("TOLLBOOK_POSTGRES").replace(world.database, name)
    first = tmp_path / "first"
    first.mkdir()
    (first / "0001_log.sql").write_text((SCHEMA.folder / "0001_log.sql").read_text())
    password = world.stack.environment()["TOLLBOOK_LEDGER_DB_PASSWORD"]
    assert await replace(SCHEMA, folder=first).migrate(admin, password) == 1
    pool = await asyncpg.create_pool(
        admin, min_size=1, max_size=2, server_settings={"search_path": "ledger"}
    )
    try:
        with pytest.raises(MigrationError, match="migrate` of this release first"):
            await SCHEMA.check_version(pool)
        log_id = await store.open_log(pool, "usage-0")
        tree, index = TreeBuilder(), IdentityIndex()
        state = LogState(tree, 0, index, {"inference-0/boot/0": StreamState()})
        head = store.Head(log_id, "usage-0", b"", 0, 0, 0, EMPTY_ROOT, b"")
        values = [builders.wrap(builders.event(f"r-{seq}"), seq) for seq in range(3_000)]
        one = planned(state, builders.records(list(values[:2_000])))
        await store.write_usage(pool, head, one, 1)
        assert await SCHEMA.migrate(admin, password) == len(SCHEMA.steps())
        await SCHEMA.check_version(pool)
        head = await until("take-over", lambda: store.take_over(pool, log_id, "me", 60_000))
        reader = LeafReader(pool, world.archive())
        held = HeldLog(pool, head, 60_000, reader)
        again = await held.load()
        assert (again.tree.size, again.tree.root()) == (2_000, one.root)
        again.streams = await held.load_streams(["inference-0/boot/0"])
        await held.write(planned(again, builders.records(list(values[2_000:]), 2_000)))
        leaves = await reader.leaves(log_id, 0, 3_000)
        assert [leaf_format.decode(leaf).value for leaf in leaves] == values
        [first_segment, *_] = await segments_of(pool, log_id, "usage-0")
        assert (first_segment.start, first_segment.end) == (0, 1 << 20)
        for role in ("origin", "replica"):
            await pool.execute(f"SET session_replication_role = {role}")
            for statement in ("UPDATE {} SET log_id = log_id", "DELETE FROM {}", "TRUNCATE {}"):
                with pytest.raises(asyncpg.RestrictViolationError):
                    await pool.execute(statement.format(first_segment.table))
    finally:
        pool.terminate()
        await world.db.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def planned(state: LogState, records: list[Record]) -> Batch:
    """The batch that these records make."""
    found = scan_records(records)
    return plan(state, records, found, Suspects({}, frozenset()), {}, records[-1][0] + 1)


async def test_readers_and_a_worker_go_on_while_segments_leave(world: LedgerWorld) -> None:
    """Sealing under load: every follower gets every leaf once, whichever way it was kept."""
    signed = Signed(world)
    total = 12_000
    async with world.workforce(batch_records=300), ledger_server(world) as server:

        async def read(pace_s: float) -> list[bytes]:
            seen: list[bytes] = []
            stream = server.stub.ReadEvents(
                pb.ReadEventsRequest(log="usage-0", follow=True, max_batch=256)
            )
            while len(seen) < total:
                answer = await stream.read()
                assert answer.first_position == len(seen)
                seen += answer.leaves
                await asyncio.sleep(pace_s)
            stream.cancel()
            return seen

        readers = [asyncio.create_task(read(pace)) for pace in (0.0, 0.05, 0.1)]
        values = world.values(0, total)
        sealed: list[Any] = []
        for _ in range(6):
            await world.deliver(0, [next(values) for _ in range(total // 6)])
            await world.wait_size(1)
            await signed.sign()
            sealed += await signed.seal()
        await world.wait_size(total)

        async def some_are_sealed() -> bool:
            await signed.sign()
            sealed.extend(await signed.seal())
            return len(sealed) >= 9

        await until("most is sealed", some_are_sealed)
        async with asyncio.timeout(WAIT_S):
            found = await asyncio.gather(*readers)
    records = await world.records(0, total)
    for seen in found:
        assert [leaf[-20:] for leaf in seen] == [record[3][-20:] for record in records if record[3]]
    assert sealed == [(at, at + SEGMENT) for at in range(0, len(sealed) * SEGMENT, SEGMENT)]
