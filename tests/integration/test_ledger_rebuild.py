"""A lost database, rebuilt to the same root; a restored one, not signed until it is whole."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.integration.test_ledger_verify import check, produce, records, until_logged
from tests.integration.test_tamper_evidence import WAIT_S, append, ledger, until

from kernel.errors import FailedPrecondition
from ledger.adapters import database
from ledger.adapters.migrate import SCHEMA
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.stack.control import Stack
from tollbook.stack.postgres import place_for, run_as, system_account

pytestmark = pytest.mark.integration

LOG, LOG_ID, PARTITION = "usage-1", 101, 1
PARTS = ("ledger-tiles", "ledger-signer", "ledger-worker", "ledger-server")
# All that a ledger is made of, but for clocks, owners and what is derived at leisure.
CONTENTS = {
    "log_head": "log_id, name, next_offset, size, root, frontier, control_size, accepted,"
    " duplicate, conflict, rejected",
    "log_tile": "*",
    "log_aside": "*",
    "append_key": "*",
    "log_exception": "log_id, position, disposition, reason",
    "producer_stream": "log_id, stream_id, next_seq, missing, closed_seq",
}


async def fill(stack: Stack) -> None:
    """Usage between changes of the control log, so that there are several pins."""
    async with ledger(stack) as stub:
        size = 0
        for number in range(4):
            values = records(f"rebuilt-{number}", 120)
            await append(stub, 70)
            if number == 1:
                values[50:50] = [b"\xff rubbish", b"x" * 70_000, values[7]]
                del values[90]  # a gap in a stream
                await append(stub, 1, payload=b"y" * 70_000)
            await produce(stack, PARTITION, values)
            size += len(values)
            await until_logged(stack, {LOG: size})
        control = await append(stub, 3)
    await until_logged(stack, {"control": control})


@pytest.fixture(scope="module")
def stack(evidence_stack: Stack) -> Stack:
    asyncio.run(fill(evidence_stack))
    return evidence_stack


async def contents(stack: Stack) -> dict[str, list[tuple[Any, ...]]]:
    db = await asyncpg.connect(
        stack.environment()["TOLLBOOK_POSTGRES"], server_settings={"search_path": "ledger"}
    )
    try:
        found = {}
        for table, what in CONTENTS.items():
            rows = await db.fetch(f"SELECT {what} FROM {table}")
            found[table] = sorted(tuple(map(str, row)) for row in rows)
        # The cut log's pins mean nothing.
        found["log_pin"] = [
            tuple(row)
            for row in await db.fetch(
                "SELECT * FROM log_pin WHERE log_id >= 100 ORDER BY log_id, from_position"
            )
        ]
        return found
    finally:
        await db.close()


def tollbook(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tollbook.cli", *arguments],
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


async def hold(stack: Stack) -> None:
    for part in PARTS:
        await asyncio.to_thread(stack.hold, part)


async def release(stack: Stack) -> None:
    for part in reversed(PARTS):
        await asyncio.to_thread(stack.release, part)


async def lose_everything(stack: Stack) -> None:
    environment = stack.environment()
    db = await asyncpg.connect(environment["TOLLBOOK_POSTGRES"])
    try:
        await db.execute("DROP SCHEMA ledger CASCADE")
    finally:
        await db.close()
    await SCHEMA.migrate(
        environment["TOLLBOOK_POSTGRES"], environment["TOLLBOOK_LEDGER_DB_PASSWORD"]
    )


async def test_a_database_that_refuses_is_told_from_one_that_is_away(stack: Stack) -> None:
    dsn = urlsplit(stack.environment()["TOLLBOOK_LEDGER_POSTGRES"])
    for wrong in (
        dsn._replace(path="/nowhere"),
        dsn._replace(netloc=dsn.netloc.replace(f":{dsn.password}@", ":wrong@")),
        # The driver hands what it does not know to the server.
        dsn._replace(query="sslmod=require"),
    ):
        said = "setting TOLLBOOK_LEDGER_POSTGRES: the database refuses: "
        with pytest.raises(FailedPrecondition, match=said):
            await database.connect_once(wrong.geturl(), "tollbook-test", 5)
        with pytest.raises(FailedPrecondition, match=said):
            await database.open_pool(wrong.geturl(), 1, asyncio.Event())


async def goes_on(stack: Stack) -> None:
    """The rebuilt ledger is signed on, as an extension of what was signed before."""
    async with ledger(stack) as stub:
        size = await append(stub, 2)
        await stub.GetCheckpoint(
            pb.GetCheckpointRequest(log="control", min_size=size), timeout=WAIT_S
        )
        logs = {state.log: state.size for state in (await stub.ListLogs(pb.ListLogsRequest())).logs}
        await produce(stack, PARTITION, records(os.urandom(4).hex(), 10))
    await until_logged(stack, {LOG: logs[LOG] + 10, "control": size})
    verdict = await check(stack)
    assert verdict.ok, list(map(str, verdict.findings))


async def test_a_lost_database_is_rebuilt_to_the_same_root(stack: Stack, tmp_path: Path) -> None:
    def rebuild(*arguments: str) -> Any:
        return asyncio.to_thread(tollbook, stack, "ledger", "rebuild", *arguments)

    folder = Path(stack.environment()["TOLLBOOK_TILES_URL"].removeprefix("file://"))
    await hold(stack)
    try:
        before = await contents(stack)
        assert len([pin for pin in before["log_pin"] if pin[0] == LOG_ID]) >= 4
        # From tiles of which one byte is another: nothing of that log is written.
        copy = tmp_path / "tiles"
        await asyncio.to_thread(shutil.copytree, folder, copy)
        flip_a_byte(copy / "logs" / LOG / "tile" / "entries" / "000")
        await lose_everything(stack)
        done = await rebuild("--tiles", copy.as_uri() + "/")
        assert done.returncode == 1
        assert LOG in done.stderr
        assert {row[0]: row[3] for row in (await contents(stack))["log_head"]}[str(LOG_ID)] == "0"
        # The control log alone is back: its size of now is no pin for entries of then.
        control = tmp_path / "control"
        await asyncio.to_thread(shutil.copytree, folder, control)
        await asyncio.to_thread(shutil.rmtree, control / "logs" / LOG)
        done = await rebuild("--tiles", control.as_uri() + "/")
        assert done.returncode == 0, done.stderr
        done = await rebuild()
        assert done.returncode == 1
        assert "begin with an empty schema" in done.stderr
        await lose_everything(stack)
        # From the tiles, then from Kafka.
        done = await rebuild()
        assert done.returncode == 0, done.stderr
        assert await contents(stack) == before
        assert "nothing lacks" in (await rebuild()).stdout
        await lose_everything(stack)
        done = await rebuild("--from-kafka")
        assert done.returncode == 0, done.stderr
        assert await contents(stack) == before
    finally:
        await release(stack)
    await goes_on(stack)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


async def test_a_log_that_is_worked_on_is_left_alone(stack: Stack) -> None:
    async def refused() -> bool:
        done = await asyncio.to_thread(tollbook, stack, "ledger", "rebuild")
        assert "has an owner that lives" in done.stderr or "nothing lacks" in done.stdout, done
        return done.returncode == 1

    # Not while the worker stands still and its lease is over: then nobody is in the way.
    await until("it is refused", refused)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "tamper-evidence.md"


def run_as_the_page_says(stack: Stack, step: str, **settings: str) -> None:
    """Run a block of the operators' page, as the user of the database's server."""
    [block] = re.findall(rf"^```sh run={step}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    place = place_for(stack.home)
    account = system_account() if place.needs_account else None
    done = subprocess.run(
        ["bash", "-ec", block],
        check=False,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env={
            "PATH": os.pathsep.join([str(Path(place.program("psql")).parent), "/usr/bin", "/bin"]),
            "TOLLBOOK_POSTGRES": stack.environment()["TOLLBOOK_POSTGRES"],
            **settings,
        },
        **run_as(account),
    )
    assert done.returncode == 0, (block, done.stdout, done.stderr)


async def test_a_restore_to_a_point_in_time(stack: Stack) -> None:
    """docs/tamper-evidence.md, step by step: base backup, archived WAL, a named point."""
    place = place_for(stack.home)
    archive, base = place.folder / "archive", place.folder / "base"
    admin = stack.environment()["TOLLBOOK_POSTGRES"]

    async def sql(statement: str) -> Any:
        db = await asyncpg.connect(admin)
        try:
            return await db.fetchval(statement)
        finally:
            await db.close()

    async def restarted() -> None:
        await asyncio.to_thread(stack.hold, "postgres")
        await asyncio.to_thread(stack.release, "postgres")
        await asyncio.to_thread(stack.wait_ready, "postgres")

    def step(name: str) -> Any:
        return asyncio.to_thread(
            run_as_the_page_says,
            stack,
            name,
            ARCHIVE=str(archive),
            BASE=str(base),
            DATA=str(place.data),
            POINT="the_point",
        )

    make_folder(stack, archive)
    await step("archive")
    await restarted()
    await step("base")
    async with ledger(stack) as stub:
        await append(stub, 5)
        logs = {state.log: state.size for state in (await stub.ListLogs(pb.ListLogsRequest())).logs}
        await produce(stack, PARTITION, records(os.urandom(4).hex(), 30))
        await until_logged(stack, {LOG: logs[LOG] + 30})
        await sql("SELECT pg_create_restore_point('the_point')")
        # What comes after the point will be lost with the database.
        control = await append(stub, 40)
        await produce(stack, PARTITION, records(os.urandom(4).hex(), 50))
        usage = logs[LOG] + 80
        await until_logged(stack, {LOG: usage, "control": control})
    whole = await contents(stack)
    segment = await sql("SELECT pg_walfile_name(pg_switch_wal())")

    async def archived() -> bool:
        found: str | None = await sql("SELECT last_archived_wal FROM pg_stat_archiver")
        return found is not None and found >= segment

    await until("the WAL is archived", archived)
    await hold(stack)
    await asyncio.to_thread(stack.hold, "postgres")
    await step("restore")
    await asyncio.to_thread(stack.release, "postgres")
    await asyncio.to_thread(stack.wait_ready, "postgres")

    async def writable() -> bool:
        try:
            return not await sql("SELECT pg_is_in_recovery()")
        except (OSError, asyncpg.PostgresError):
            return False

    await until("the restore is done", writable)
    sizes = {row[1]: int(row[3]) for row in (await contents(stack))["log_head"]}
    assert sizes[LOG] == usage - 50
    assert sizes["control"] == control - 40
    # The signer refuses the shrunken logs.
    log_file = stack.log_file("ledger-signer")
    told = len(log_file.read_text())
    started = asyncio.create_task(asyncio.to_thread(stack.release, "ledger-signer", 200))

    async def refused() -> bool:
        text = log_file.read_text()[told:]
        return f"log control SHRANK: {control}" in text and f"log {LOG} SHRANK" in text

    await until("the signer refuses", refused)
    # Control comes back from the tiles, usage from Kafka.
    done = await asyncio.to_thread(tollbook, stack, "ledger", "rebuild", "--from-kafka")
    assert done.returncode == 0, done.stderr
    assert await contents(stack) == whole
    for part in ("ledger-server", "ledger-worker", "ledger-tiles"):
        await asyncio.to_thread(stack.release, part)
    await started
    await goes_on(stack)


def make_folder(stack: Stack, folder: Path) -> None:
    folder.mkdir()
    if place_for(stack.home).needs_account:
        account = system_account()
        os.chown(folder, account.uid, account.gid)
