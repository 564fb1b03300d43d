"""The ledger's server, signer and schema on the real database: appends, proofs, refusals."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.deadlines import told_in_time
from tests.integration.ledger_world import WAIT_S, until

from kernel import grpcs, merkle
from kernel import leaf as leaves
from kernel.note import VerifierKey, open_checkpoint
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.ledger.v1 import ledger_pb2_grpc
from tollbook.stack.control import Stack, running_stack

pytestmark = pytest.mark.integration

APPEND_ONLY = (
    "log_chunk",
    "log_tile",
    "log_pin",
    "checkpoint",
    "log_aside",
    "append_key",
    "log_exception",
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(parts=["ledger-server", "ledger-signer"]) as running:
        yield running


@asynccontextmanager
async def ledger(stack: Stack) -> AsyncIterator[Any]:
    channel = grpcs.channel(stack.address("ledger-server"))
    try:
        yield ledger_pb2_grpc.LedgerServiceStub(channel)
    finally:
        await channel.close()


@asynccontextmanager
async def database(stack: Stack, setting: str) -> AsyncIterator[Any]:
    db = await asyncpg.connect(
        stack.environment()[setting], server_settings={"search_path": "ledger"}
    )
    try:
        yield db
    finally:
        await db.close()


def verifier(stack: Stack, log: str) -> VerifierKey:
    lines = Path(stack.environment()["TOLLBOOK_VERIFIER_KEYS"]).read_text().splitlines()
    [key] = [key for key in map(VerifierKey.parse, lines) if key.name.endswith(f"/{log}")]
    return key


def append(log: str, key: str, payload: bytes, size: int | None = None) -> pb.AppendRequest:
    return pb.AppendRequest(log=log, idempotency_key=key, payload=payload, expected_size=size)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_an_append_is_proved_and_a_repeat_gives_the_first_answer(stack: Stack) -> None:
    async with ledger(stack) as stub:
        first = await stub.Append(append("control", "proved", b"payload"))
        await stub.Append(append("control", "later", b"other"))
        again = await stub.Append(append("control", "proved", b"payload"))
        entry = await stub.GetEntry(pb.GetEntryRequest(log="control", position=first.position))
        leaf = leaves.decode(entry.leaf)
        assert (leaf.key, leaf.value, leaf.offset) == (b"proved", b"payload", first.position)
        merkle.verify_inclusion(
            first.position,
            first.size,
            merkle.leaf_hash(entry.leaf),
            list(first.inclusion_proof),
            first.root,
        )
        assert again.replayed
        assert not first.replayed
        again.replayed = False
        assert again == first
        error = await refusal(stub.Append(append("control", "proved", b"another payload")))
        assert error.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_concurrent_appends_under_one_key_are_one_record(stack: Stack) -> None:
    async with ledger(stack) as stub:
        answers = await asyncio.gather(
            *(
                stub.Append(append("control", f"crowd-{n % 20}", b"%d" % (n % 20)))
                for n in range(200)
            )
        )
        assert len({answer.position for answer in answers}) == 20
        assert sum(not answer.replayed for answer in answers) == 20


async def test_a_decision_on_an_old_state_is_refused(stack: Stack) -> None:
    async with ledger(stack) as stub:
        size = (await stub.Append(append("cuts", "state-0", b"a"))).size
        assert (await stub.Append(append("cuts", "state-1", b"b", size))).position == size
        error = await refusal(stub.Append(append("cuts", "state-2", b"c", size)))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert str(size + 1) in (error.details() or "")


async def test_what_is_not_there_is_said_to_be_not_there(stack: Stack) -> None:
    async with ledger(stack) as stub:
        for call, code in (
            (stub.Append(append("nowhere", "k", b"p")), grpc.StatusCode.NOT_FOUND),
            (stub.Append(append("control", "", b"p")), grpc.StatusCode.INVALID_ARGUMENT),
            (
                stub.GetEntry(pb.GetEntryRequest(log="control", position=1 << 40)),
                grpc.StatusCode.OUT_OF_RANGE,
            ),
            (
                stub.GetConsistencyProof(
                    pb.GetConsistencyProofRequest(log="control", first_size=2, second_size=1)
                ),
                grpc.StatusCode.OUT_OF_RANGE,
            ),
            (
                stub.GetInclusionProof(
                    pb.GetInclusionProofRequest(log="control", position=0, tree_size=1 << 40)
                ),
                grpc.StatusCode.OUT_OF_RANGE,
            ),
        ):
            assert (await refusal(call)).code() is code
        unsigned = pb.GetCheckpointRequest(log="control", min_size=1 << 40)
        error = await told_in_time(lambda s: stub.GetCheckpoint(unsigned, timeout=s))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        stream = stub.ReadEvents(pb.ReadEventsRequest(log="control", from_position=1 << 40))
        assert (await refusal(stream.read())).code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_follower_sees_every_entry_once_and_the_checkpoint_proves_them(
    stack: Stack,
) -> None:
    async with ledger(stack) as stub:
        start = (await stub.Append(append("cuts", "follow-start", b"x"))).size
        count = 700
        stream = stub.ReadEvents(
            pb.ReadEventsRequest(log="cuts", from_position=start, follow=True, max_batch=100)
        )
        writing = asyncio.gather(
            *(stub.Append(append("cuts", f"follow-{n}", b"%d" % n)) for n in range(count))
        )
        seen: list[bytes] = []
        async with asyncio.timeout(WAIT_S):
            while len(seen) < count:
                message = await stream.read()
                assert message.first_position == start + len(seen)
                assert len(message.leaves) <= 100
                seen += message.leaves
        stream.cancel()
        answers = await writing
        assert {leaves.decode(data).value for data in seen} == {b"%d" % n for n in range(count)}
        size = max(answer.size for answer in answers)
        signed = await stub.GetCheckpoint(
            pb.GetCheckpointRequest(log="cuts", min_size=size), timeout=WAIT_S
        )
        checkpoint = open_checkpoint(signed.note, verifier(stack, "cuts"))
        assert (checkpoint.size, checkpoint.root) == (signed.size, signed.root)
        for answer in answers[:: count // 25]:
            proof = await stub.GetInclusionProof(
                pb.GetInclusionProofRequest(
                    log="cuts", position=answer.position, tree_size=signed.size
                )
            )
            merkle.verify_inclusion(
                answer.position, signed.size, proof.leaf_hash, list(proof.proof), checkpoint.root
            )
            earlier = await stub.GetConsistencyProof(
                pb.GetConsistencyProofRequest(
                    log="cuts", first_size=answer.size, second_size=signed.size
                )
            )
            merkle.verify_consistency(
                answer.size, signed.size, answer.root, checkpoint.root, list(earlier.proof)
            )


async def test_a_restart_between_append_and_repeat_changes_nothing(stack: Stack) -> None:
    async with ledger(stack) as stub:
        first = await stub.Append(append("control", "restarted", b"same"))
        await asyncio.to_thread(stack.kill, "ledger-server")
        await asyncio.to_thread(stack.wait_ready, "ledger-server")
        again = await stub.Append(
            append("control", "restarted", b"same"), wait_for_ready=True, timeout=WAIT_S
        )
        assert (again.position, again.root, again.replayed) == (first.position, first.root, True)


async def test_the_services_role_can_neither_change_nor_delete_nor_truncate(stack: Stack) -> None:
    async with ledger(stack) as stub:
        await stub.Append(append("control", "to-be-kept", b"kept"))
    async with database(stack, "TOLLBOOK_LEDGER_POSTGRES") as db:
        for table in APPEND_ONLY:
            for statement in (
                f"UPDATE {table} SET log_id = log_id",
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
                f"ALTER TABLE {table} DISABLE TRIGGER ALL",
                f"DROP TABLE {table}",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await db.execute(statement)


async def test_triggers_refuse_the_administrator_too_also_as_a_replica(stack: Stack) -> None:
    async with ledger(stack) as stub:
        await stub.Append(append("control", "large", b"x" * 100_000))
        await stub.GetCheckpoint(pb.GetCheckpointRequest(log="control", min_size=1), timeout=WAIT_S)
        while (await stub.Append(append("control", os.urandom(8).hex(), b"fill"))).size <= 256:
            continue
    async with database(stack, "TOLLBOOK_POSTGRES") as db:
        # Row triggers need a row to fire on.
        await db.execute("INSERT INTO log_exception VALUES (1, 0, 4, 1)")
        for role in ("origin", "replica"):
            await db.execute(f"SET session_replication_role = {role}")
            tables = [*APPEND_ONLY, "log_chunk_1", "log_tile_1"]
            for table in tables:
                for statement in (
                    f"UPDATE {table} SET log_id = log_id",
                    f"DELETE FROM {table}",
                    f"TRUNCATE {table}",
                ):
                    with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
                        await db.execute(statement)


async def test_the_role_may_not_make_logs_of_any_name(stack: Stack) -> None:
    async with database(stack, "TOLLBOOK_LEDGER_POSTGRES") as db:
        for name in ("usage-", "usage-01", "usage-100000", "other", "usage-1; DROP TABLE log_head"):
            with pytest.raises(asyncpg.InvalidParameterValueError):
                await db.fetchval("SELECT open_log($1)", name)


async def test_another_role_has_no_right_on_the_ledger(stack: Stack) -> None:
    tables = (*APPEND_ONLY, "log_head", "producer_stream", "identity_run", "worker")
    async with database(stack, "TOLLBOOK_POSTGRES") as admin:
        await admin.execute("CREATE ROLE stranger")
        try:
            for table in tables:
                for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
                    assert not await admin.fetchval(
                        "SELECT has_table_privilege('stranger', $1, $2)", f"ledger.{table}", right
                    )
            assert not await admin.fetchval(
                "SELECT has_function_privilege('stranger', 'ledger.open_log(text)', 'EXECUTE')"
            )
        finally:
            await admin.execute("DROP ROLE stranger")


async def serving(address: str) -> bool:
    channel = grpc.aio.insecure_channel(address)
    try:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    except grpc.aio.AioRpcError:
        return False
    finally:
        await channel.close()


async def until_serving(address: str, wanted: bool) -> None:
    deadline = time.monotonic() + WAIT_S
    while await serving(address) != wanted:
        assert time.monotonic() < deadline, f"{address} is not {'' if wanted else 'un'}healthy"
        await asyncio.sleep(0.05)


async def said(stack: Stack, part: str, words: str) -> bool:
    return words in stack.log_file(part).read_text()


async def test_the_signer_refuses_a_shrunken_and_a_forked_log(stack: Stack) -> None:
    signer = stack.address("ledger-signer")
    async with ledger(stack) as stub, database(stack, "TOLLBOOK_POSTGRES") as admin:
        await stub.Append(append("cuts", "signed-before", b"x"))
        size = (await stub.Append(append("cuts", "signed-last", b"y"))).size
        await stub.GetCheckpoint(pb.GetCheckpointRequest(log="cuts", min_size=size), timeout=WAIT_S)
        await until_serving(signer, True)
        honest = await admin.fetchrow(
            "SELECT size, root, accepted FROM log_head WHERE name = 'cuts'"
        )
        count = "SELECT count(*) FROM checkpoint WHERE log_id = 2"
        signed = await admin.fetchval(count)
        lies = (
            ("SHRANK", honest["size"] - 1, honest["root"]),
            ("FORKED", honest["size"], bytes(32)),
        )
        for word, lie_size, lie_root in lies:
            await admin.execute(
                "UPDATE log_head SET size = $1, accepted = $1, root = $2 WHERE name = 'cuts'",
                lie_size,
                lie_root,
            )
            await until_serving(signer, False)
            # Which it says after it is not healthy any more.
            await until(word, functools.partial(said, stack, "ledger-signer", f"log cuts {word}"))
            assert await admin.fetchval(count) == signed
            await admin.execute(
                "UPDATE log_head SET size = $1, accepted = $2, root = $3 WHERE name = 'cuts'",
                honest["size"],
                honest["accepted"],
                honest["root"],
            )
            await until_serving(signer, True)


async def test_a_signer_without_its_memory_file_whole_does_not_start(stack: Stack) -> None:
    memory = stack.home.root / "signer" / "signed.json"
    async with ledger(stack) as stub:
        await stub.Append(append("cuts", "remembered", b"z"))
        size = (await stub.Append(append("cuts", "remembered-2", b"z"))).size
        await stub.GetCheckpoint(pb.GetCheckpointRequest(log="cuts", min_size=size), timeout=WAIT_S)
    await asyncio.to_thread(stack.hold, "ledger-signer")
    kept = memory.read_text()
    try:
        memory.write_text(kept[: len(kept) // 2])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ledger.entrypoints.signer",
            env={
                **os.environ,
                **stack.environment(),
                "TOLLBOOK_HEALTH_ADDRESS": stack.address("ledger-signer"),
            },
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(process.communicate(), WAIT_S)
        assert process.returncode == 1
        assert b"restore it from a backup" in said
    finally:
        memory.write_text(kept)
        await asyncio.to_thread(stack.release, "ledger-signer")


async def test_a_signer_of_another_origin_is_refused(stack: Stack, tmp_path: Path) -> None:
    async with ledger(stack) as stub:
        size = (await stub.Append(append("cuts", "signed-under-a-name", b"payload"))).size
        await stub.GetCheckpoint(pb.GetCheckpointRequest(log="cuts", min_size=size), timeout=WAIT_S)
    # A home of its own: the key and memory of the running signer stay out of its hands.
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ledger.entrypoints.signer",
        env={
            **os.environ,
            **stack.environment(),
            "TOLLBOOK_HOME": str(tmp_path),
            "TOLLBOOK_ORIGIN": "another.example/house",
            "TOLLBOOK_HEALTH_ADDRESS": "127.0.0.1:0",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 1
    assert f"signed as {stack.environment()['TOLLBOOK_ORIGIN']}" in errors.decode()
    assert "TOLLBOOK_ORIGIN is another.example/house" in errors.decode()
