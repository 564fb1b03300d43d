"""The local stack on its real broker and database: killed in every way; nothing lost or left."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tollbook.cache import cache_home
from tollbook.stack import PartFailed, Stack, StackError, running_stack
from tollbook.stack.catalogue import GIVEN_BY
from tollbook.stack.jars import jars_folder_name
from tollbook.stack.ports import OFFSETS, is_free
from tollbook.stack.processes import ProcessId, find_stack, wait_gone
from tollbook.stack.state import StackState

pytestmark = pytest.mark.integration

PARTS = ("kafka", "postgres")
CHECKOUT = Path(__file__).resolve().parents[2]
TOPIC = "usage.events.v1"


async def produce(stack: Stack, value: bytes) -> int:
    """Writes one record to partition 0, acknowledged; returns its offset."""
    producer = AIOKafkaProducer(bootstrap_servers=stack.address("kafka"), acks="all")
    await producer.start()
    try:
        sent = await producer.send_and_wait(TOPIC, value, partition=0)
    finally:
        await producer.stop()
    return int(sent.offset)


async def consume(stack: Stack, offset: int) -> bytes:
    """Reads the record at an offset of partition 0."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=stack.address("kafka"), auto_offset_reset="none", enable_auto_commit=False
    )
    await consumer.start()
    try:
        partition = TopicPartition(TOPIC, 0)
        consumer.assign([partition])
        consumer.seek(partition, offset)
        batches = await consumer.getmany(partition, timeout_ms=120_000, max_records=1)
    finally:
        await consumer.stop()
    (record,) = batches[partition]
    assert record.offset == offset
    assert record.value is not None
    return bytes(record.value)


async def insert(stack: Stack, text: str) -> None:
    connection = await asyncpg.connect(stack.environment()["TOLLBOOK_POSTGRES"])
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (text text)")
        await connection.execute("INSERT INTO kept VALUES ($1)", text)
    finally:
        await connection.close()


async def rows(stack: Stack) -> list[str]:
    connection = await asyncpg.connect(stack.environment()["TOLLBOOK_POSTGRES"])
    try:
        return [row["text"] for row in await connection.fetch("SELECT text FROM kept")]
    finally:
        await connection.close()


def ports_come_free(base: int) -> bool:
    """The kernel lets go of a killed process's ports some time after it is gone."""
    deadline = time.monotonic() + 60
    while not all(is_free(base + offset) for offset in OFFSETS.values()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def processes_of(state: StackState) -> dict[str, ProcessId | None]:
    return {name: part.process for name, part in state.parts.items()}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(parts=PARTS) as running:
        yield running


@pytest.fixture
def up(stack: Stack) -> Stack:
    """The module's stack, brought up again if an earlier test left it in pieces."""
    stack.up(PARTS)
    return stack


def test_up_when_up_changes_nothing(up: Stack) -> None:
    before = up.running()
    assert up.up(PARTS) is False
    after = up.running()
    assert after.supervisor == before.supervisor
    assert processes_of(after) == processes_of(before)


def test_a_shell_that_read_the_stacks_own_settings_asks_for_no_other(
    up: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in up.environment().items():
        if name in GIVEN_BY.values():
            monkeypatch.setenv(name, value)
    again = Stack.at(up.home.root)
    assert again.up(PARTS) is False
    again.down()
    assert again.up(PARTS) is True
    assert set(PARTS) <= set(again.running().parts)


def test_another_broker_than_the_running_stacks_is_refused(
    up: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLBOOK_KAFKA", "127.0.0.1:1")
    with pytest.raises(StackError, match="runs with other settings for TOLLBOOK_KAFKA"):
        Stack.at(up.home.root).up(PARTS)


@pytest.mark.parametrize("part", PARTS)
async def test_a_killed_part_comes_back_with_what_it_held(up: Stack, part: str) -> None:
    offset = await produce(up, f"before {part} died".encode())
    await insert(up, f"before {part} died")
    killed = up.kill(part)
    reborn = up.wait_ready(part)
    assert reborn is not None
    assert reborn != killed
    assert await consume(up, offset) == f"before {part} died".encode()
    assert f"before {part} died" in await rows(up)


async def test_up_recovers_from_the_kill_of_everything_at_once(up: Stack) -> None:
    base = up.running().base_port
    offset = await produce(up, b"acknowledged")
    await insert(up, "committed")
    killed = up.kill_all()
    assert up.processes() == set()
    assert len(killed) >= 3
    up.up(PARTS)
    assert up.running().base_port == base
    assert await consume(up, offset) == b"acknowledged"
    assert "committed" in await rows(up)


def test_down_leaves_nothing(up: Stack) -> None:
    state = up.running()
    everything = up.processes() | {state.supervisor}
    assert up.down() is True
    assert not any(process.is_alive() for process in everything)
    assert up.processes() == set()
    assert ports_come_free(state.base_port)
    assert up.down() is False


def test_down_after_the_supervisor_was_killed_leaves_nothing(up: Stack) -> None:
    state = up.running()
    state.supervisor.send(9)
    assert not wait_gone([state.supervisor], 120)
    left = up.processes()
    assert {part.process for part in state.parts.values() if part.process} <= left
    assert up.down() is True
    assert not any(process.is_alive() for process in left)
    assert ports_come_free(state.base_port)


async def test_up_after_the_supervisor_was_killed_takes_over(up: Stack) -> None:
    offset = await produce(up, b"kept")
    state = up.running()
    state.supervisor.send(9)
    assert not wait_gone([state.supervisor], 120)
    with pytest.raises(StackError, match="does not run"):
        up.running()
    assert up.up(PARTS) is True
    assert up.running().supervisor != state.supervisor
    assert up.running().base_port == state.base_port
    assert await consume(up, offset) == b"kept"


def test_a_held_part_stays_down_until_it_is_released(up: Stack) -> None:
    process = up.process("kafka")
    up.hold("kafka")
    assert not process.is_alive()
    with pytest.raises(StackError, match="kafka has no process"):
        up.process("kafka")
    up.release("kafka")
    assert up.process("kafka") != process


def test_two_stacks_side_by_side_share_nothing(up: Stack) -> None:
    with running_stack(parts=("postgres",)) as other:
        assert other.home.stack_id != up.home.stack_id
        assert other.running().base_port != up.running().base_port
        assert not other.processes() & up.processes()
        before = up.running()
        other.down()
        # Not every process of before: the database has some that come and go.
        after = up.running()
        assert (after.supervisor, processes_of(after)) == (before.supervisor, processes_of(before))
        assert all(process.is_alive() for process in processes_of(after).values() if process)


def test_a_broker_of_the_users_own_is_used_and_left_alone(
    up: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOLLBOOK_KAFKA", up.address("kafka"))
    monkeypatch.setenv("TOLLBOOK_TOPIC", "another.topic")
    with running_stack(tmp_path / "home", ("topic",)) as other:
        assert "kafka" not in other.running().parts
        assert other.running().parts["topic"].detail == "another.topic, 4 partitions"
        assert other.environment()["TOLLBOOK_KAFKA"] == up.address("kafka")
    assert up.process("kafka").is_alive()


def test_a_topic_with_another_number_of_partitions_is_refused(
    up: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOLLBOOK_KAFKA", up.address("kafka"))
    monkeypatch.setenv("TOLLBOOK_PARTITIONS", "7")
    with (
        pytest.raises(PartFailed, match="has 4 partitions and TOLLBOOK_PARTITIONS is 7"),
        running_stack(tmp_path / "home", ("topic",)),
    ):
        pytest.fail("the stack came up")


def test_it_works_under_a_deep_path_that_lets_nobody_else_through() -> None:
    root = Path(tempfile.mkdtemp(prefix="tollbook-deep-"))
    root.chmod(0o700)
    home = root.joinpath(*["a folder with a rather long name" for _ in range(8)], "home")
    assert len(str(home)) > 250
    try:
        with running_stack(home, PARTS) as deep:
            assert deep.process("postgres").is_alive()
            assert deep.process("kafka").is_alive()
        deep.remove()
        assert not home.exists()
    finally:
        shutil.rmtree(root, ignore_errors=True)


OWNER = """
import sys, time
from tollbook.stack import running_stack
with running_stack(sys.argv[1], ("postgres",)) as stack:
    print("up", flush=True)
    time.sleep(600)
"""


def test_a_stack_goes_with_the_process_that_owns_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(home)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{CHECKOUT / 'services'}:{CHECKOUT / 'gen'}"},
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    stack = Stack.at(home)
    processes = stack.processes()
    assert processes
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert not wait_gone(processes, 120)
    assert stack.processes() == set()
    stack.remove()


PLAIN = """
import os, sys
from tollbook.stack import running_stack
assert os.geteuid() != 0
with running_stack(parts=("kafka", "postgres")) as stack:
    print("up", stack.home.stack_id, flush=True)
    killed = stack.kill("postgres")
    assert stack.wait_ready("postgres") != killed
print("down", flush=True)
"""


def others_may_read(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))


def interpreter_for_others() -> str | None:
    """A Python like ours that any user can run: ours, or the system's of the same version."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for candidate in (sys.executable, shutil.which(name, path="/usr/local/bin:/usr/bin")):
        if candidate and others_may_read(Path(candidate).resolve().parent):
            return candidate
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="every test here runs as a plain user already")
def test_a_plain_user_is_served_as_root_is() -> None:
    python = interpreter_for_others()
    if python is None or not others_may_read(CHECKOUT):
        pytest.skip("no other user can reach this checkout and a Python for it")
    user = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="tollbook-plain-") as folder:
        own = Path(folder)
        shutil.copytree(cache_home() / jars_folder_name(), own / "cache" / jars_folder_name())
        for path in (own, *own.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
        done = subprocess.run(
            [python, "-c", PLAIN],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd=own,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(own),
                "TMPDIR": str(own),
                "TOLLBOOK_CACHE": str(own / "cache"),
                "PYTHONPATH": os.pathsep.join(
                    [
                        str(CHECKOUT / "services"),
                        str(CHECKOUT / "gen"),
                        sysconfig.get_paths()["purelib"],
                    ]
                ),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        first, last = done.stdout.splitlines()
        assert last == "down"
        assert find_stack(first.split()[1]) == set()
