"""Export and audit on the real parts: Kafka, PostgreSQL, ledger, signer, pricing.

The auditor gets the export's files and the verifier keys, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest
from aiokafka import AIOKafkaProducer
from tests.unit.kernel import fsck

from kernel.clock import timestamp_of
from kernel.ids import new_id
from kernel.placement import partition_of, usage_log
from tollbook.pricing.v1 import control_pb2, money_pb2, pricing_pb2, pricing_pb2_grpc
from tollbook.stack import Stack, running_stack
from tollbook.usage.v1 import usage_pb2

pytestmark = pytest.mark.integration

ACCOUNTS = ("acme", "globex", "initech", "umbrella")
GRANT_PICO = 5 * 10**12
T0_US = 1_767_225_600_000_000
CARD = """
card: standard
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: in, match: {model: tiny, direction: in}, per: 1000000, price: "0.15"}
  - {id: out, match: {model: tiny, direction: out}, per: 1000000, price: "0.60"}
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    parts = ["ledger-server", "ledger-worker", "ledger-signer"]
    with running_stack(parts=[*parts, "pricing-server", "pricing-projector"]) as running:
        yield running


class Producer:
    """One producer's stream for each partition, as inference has them."""

    def __init__(self, stack: Stack) -> None:
        self._topic = stack.environment()["TOLLBOOK_TOPIC"]
        self._partitions = int(stack.environment()["TOLLBOOK_PARTITIONS"])
        self._kafka = AIOKafkaProducer(
            bootstrap_servers=stack.address("kafka"), acks="all", max_request_size=1_000_000
        )
        self._boot = new_id("test")
        self._seq: dict[int, int] = {}

    async def __aenter__(self) -> Producer:
        await self._kafka.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._kafka.stop()

    async def raw(self, partition: int, value: bytes) -> None:
        await self._kafka.send_and_wait(self._topic, value, partition=partition)

    async def event(self, account_id: str, event_id: str, plain: int, output: int) -> None:
        made = usage_pb2.UsageEvent(
            event_id=event_id,
            account_id=account_id,
            served_model="tiny",
            outcome=usage_pb2.OUTCOME_COMPLETE,
            event_time=timestamp_of(T0_US),
        )
        token = usage_pb2.UNIT_TOKEN
        made.quantities.add(unit=token, direction=usage_pb2.DIRECTION_IN, amount=plain)
        made.quantities.add(unit=token, direction=usage_pb2.DIRECTION_OUT, amount=output)
        partition = partition_of(account_id, self._partitions)
        seq = self._seq.get(partition, 0)
        self._seq[partition] = seq + 1
        record = usage_pb2.UsageRecord(
            stream_id=f"{self._boot}/{partition}",
            stream_seq=seq,
            usage_event=made.SerializeToString(),
        )
        await self.raw(partition, record.SerializeToString())


async def publish(stack: Stack) -> None:
    """A card, four accounts, credit for each."""
    async with grpc.aio.insecure_channel(stack.address("pricing-server")) as channel:
        control: Any = pricing_pb2_grpc.ControlServiceStub(channel)
        await control.PublishRateCard(
            pricing_pb2.PublishRateCardRequest(yaml=CARD, author="a", approver="b"), timeout=120
        )
        for account_id in ACCOUNTS:
            account = control_pb2.AccountCreated(account_id=account_id, currency="USD")
            await control.CreateAccount(
                pricing_pb2.CreateAccountRequest(account=account), timeout=120
            )
            granted = control_pb2.CreditGranted(
                grant_id=f"welcome-{account_id}",
                account_id=account_id,
                amount=money_pb2.Amount(currency="USD", amount_pico=str(GRANT_PICO)),
            )
            await control.GrantCredit(pricing_pb2.GrantCreditRequest(grant=granted), timeout=120)


async def wait_for_events(stack: Stack, events: dict[str, str]) -> None:
    """Wait until each account's event is applied."""
    async with grpc.aio.insecure_channel(stack.address("pricing-server")) as channel:
        pricing: Any = pricing_pb2_grpc.PricingServiceStub(channel)
        for account_id, event_id in events.items():
            await pricing.GetBalance(
                pricing_pb2.GetBalanceRequest(account_id=account_id, wait_for_event_id=event_id),
                timeout=120,
            )


def tollbook(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tollbook.cli", *arguments],
        env={**os.environ, **stack.environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def audit_alone(export: Path, keys: Path, cwd: Path) -> tuple[int, dict[str, Any]]:
    """The auditor's own program, with nothing of the system's settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TOLLBOOK_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "audit", str(export), "--key", str(keys), "--json"],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


async def test_what_the_system_did_is_exported_audited_and_cannot_be_altered(
    stack: Stack, tmp_path: Path
) -> None:
    await publish(stack)
    async with Producer(stack) as producer:
        for number in range(300):
            account_id = ACCOUNTS[number % 4]
            await producer.event(account_id, f"e{number}", 10 + number, number)
            if number % 25 == 0:
                # The same event by another record: a repeat, charged once.
                await producer.event(account_id, f"e{number}", 10 + number, number)
        await producer.raw(0, b"rubbish")
        await producer.raw(1, b"x" * 70_000)
        last = {account_id: f"last-{account_id}" for account_id in ACCOUNTS}
        for account_id, event_id in last.items():
            await producer.event(account_id, event_id, 1, 1)
    await wait_for_events(stack, last)

    export = tmp_path / "export"
    keys = tmp_path / "verifiers"
    shutil.copy(stack.environment()["TOLLBOOK_VERIFIER_KEYS"], keys)
    done = tollbook(stack, "export", str(export))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in export.iterdir()) == [
        "README", "aside", "keys", "logs", "served.json",
    ]  # fmt: skip

    status, report = audit_alone(export, keys, tmp_path)
    assert (status, report["findings"]) == (0, [])
    logs = {log["log"]: log for log in report["logs"]}
    usage = [log for name, log in logs.items() if name.startswith("usage-")]
    assert sum(log["accepted"] for log in usage) == 304
    assert sum(log["duplicate"] for log in usage) == 12
    assert sum(log["rejected"] for log in usage) == 2
    for at, line in enumerate(sorted(report["accounts"], key=lambda a: a["account_id"])):
        numbers = range(at, 300, 4)
        charged = sum((10 + n) * 150_000 + n * 600_000 for n in numbers) + 750_000
        assert (line["account_id"], line["charged_pico"]) == (ACCOUNTS[at], str(charged))
        assert line["available_pico"] == str(GRANT_PICO - charged)

    _check_with_a_strangers_tool(export, keys, tmp_path)
    assert tollbook(stack, "audit", str(export), "--key", str(keys)).returncode == 0
    _check_the_directorys_rules(stack, export)

    # A byte of one entry, in a copy.
    acme = usage_log(partition_of("acme", 4))
    copy = tmp_path / "copy"
    shutil.copytree(export, copy)
    [bundle] = (copy / "logs" / acme / "tile/entries").glob("000*/*")
    data = bytearray(bundle.read_bytes())
    data[20] ^= 1
    bundle.write_bytes(data)
    status, report = audit_alone(copy, keys, tmp_path)
    assert status == 1
    assert report["first"].startswith(f"{acme} position 0: the entry is altered")

    # A key that is not theirs.
    stranger = tmp_path / "stranger"
    stranger.write_text("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW\n")
    status, report = audit_alone(export, stranger, tmp_path)
    assert status == 2
    assert "is this the right key file" in report["unusable"]


def _check_with_a_strangers_tool(export: Path, keys: Path, folder: Path) -> None:
    try:
        program = fsck.find()
    except pytest.skip.Exception:
        return
    for line in keys.read_text().splitlines():
        log = line.split("+")[0].rpartition("/")[2]
        key = folder / f"{log}.pub"
        key.write_text(f"{line}\n")
        if any((export / "logs" / log).glob("tile")):
            verdict = fsck.run(program, export / "logs" / log, key)
            assert verdict.ok, f"{log}: {verdict.said}"


def _check_the_directorys_rules(stack: Stack, export: Path) -> None:
    again = tollbook(stack, "export", str(export))
    assert again.returncode == 1
    assert "is not empty" in again.stderr
    assert "--replace" in again.stderr
    assert tollbook(stack, "export", str(export), "--replace").returncode == 0
    precious = export.parent / "precious"
    precious.mkdir()
    (precious / "letter").write_text("dear")
    refused = tollbook(stack, "export", str(precious), "--replace")
    assert refused.returncode == 1
    assert (precious / "letter").read_text() == "dear"
    assert not list(export.parent.glob(".*part"))


async def test_an_export_under_load_agrees_too(stack: Stack, tmp_path: Path) -> None:
    """Events keep coming while it is written: what was served, the cut and the checkpoints are of
    different instants, in the right order."""
    async with Producer(stack) as producer:
        exporting = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tollbook.cli", "export", str(tmp_path / "export")),
            env={**os.environ, **stack.environment()},
        )
        number = 0
        while exporting.returncode is None:
            await producer.event(ACCOUNTS[number % 4], f"load-{number}", 1, 1)
            number += 1
    assert exporting.returncode == 0
    assert number > 0
    keys = Path(stack.environment()["TOLLBOOK_VERIFIER_KEYS"])
    status, report = audit_alone(tmp_path / "export", keys, tmp_path)
    assert (status, report["findings"]) == (0, [])


async def test_a_superuser_who_alters_the_log_is_found(stack: Stack, tmp_path: Path) -> None:
    """Triggers off, one byte of one stored entry changed. The last test: it spoils the log."""
    log = usage_log(partition_of("acme", 4))
    database = await asyncpg.connect(stack.environment()["TOLLBOOK_POSTGRES"])
    try:
        await database.execute("SET search_path = ledger")
        await database.execute("SET session_replication_role = replica")
        async with database.transaction():
            table = await database.fetchval(
                "SELECT c.tableoid::regclass::text FROM log_chunk c JOIN log_head h USING (log_id)"
                " WHERE h.name = $1 LIMIT 1",
                log,
            )
            for name in (table, "log_chunk"):
                await database.execute(f"ALTER TABLE {name} DISABLE TRIGGER USER")
            changed = await database.execute(
                f"UPDATE {table} SET leaves = set_byte(leaves, 30, get_byte(leaves, 30) # 1)"
                " WHERE first_position = 0"
            )
            assert changed == "UPDATE 1"
    finally:
        await database.close()
    done = tollbook(stack, "export", str(tmp_path / "export"))
    assert done.returncode == 1
    assert f"the entries of {log} do not give the root that is signed" in done.stderr
    keys = Path(stack.environment()["TOLLBOOK_VERIFIER_KEYS"])
    status, report = audit_alone(tmp_path / "export", keys, tmp_path)
    assert status == 1
    assert report["first"].startswith(log)
    named = [f for f in report["findings"] if f["place"] == log and f["position"] == 0]
    assert named
