"""kill -9 of every part while real requests stream: nothing lost, nothing twice, residual 0.

The books are checked against what the callers were told, request by request; see whole_world.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from tests.integration.ledger_world import until
from tests.integration.pricing_world import again
from tests.integration.whole_world import MODELS, Asked, WholeWorld, audit_alone, request

from kernel import leaf as leaves
from kernel.placement import CONTROL_LOG, CUT_LOG
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import pricing_pb2
from tollbook.stack import Stack
from tollbook.stack.processes import process_id
from tollbook.usage.v1 import usage_pb2

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.chaos,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

ACCOUNTS = ("chaos-acme", "chaos-birch", "chaos-cedar", "chaos-dunes")
BYSTANDER = "chaos-bystander"
# The parts that are killed, and how many requests stream meanwhile: a hundred for each of broker,
# database, ledger and pricing.
ROUNDS = {
    "kafka": 100,
    "postgres": 100,
    "ledger-server": 30,
    "ledger-worker": 40,
    "ledger-signer": 30,
    "pricing-server": 50,
    "pricing-projector": 50,
}
WAIT_S = 120.0
LOADS_MOST = 5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(whole_stack: Stack) -> AsyncIterator[WholeWorld]:
    whole_stack.up()
    async with WholeWorld(whole_stack) as made:
        await made.publish_prices()
        await made.customers(*ACCOUNTS, BYSTANDER)
        await made.ask(request(BYSTANDER, "before-all", output=50))
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def others_conflicts(world: WholeWorld) -> int:
    """Conflicts that stood in the logs before: other tests on this stack send some on purpose."""
    return await conflicts(world)


async def conflicts(world: WholeWorld) -> int:
    """Entries of all usage logs that are conflicts."""
    return sum(
        item.entries
        for log, state in (await world.logs()).items()
        if log not in (CONTROL_LOG, CUT_LOG)
        for item in state.dispositions
        if item.disposition == ledger_pb2.DISPOSITION_CONFLICT
    )


def many(name: str, count: int) -> list[Asked]:
    """Requests of all accounts and both models, short and long: most as streams, some in one
    answer, one in ten left midway, one in ten sent twice at once.
    """
    made: list[Asked] = []
    while len(made) < count:
        number = len(made)
        kind = number % 10
        one = request(
            ACCOUNTS[number % len(ACCOUNTS)],
            f"{name}-{number}",
            number,
            # Ends are spread over all of the round, so that events flow at every moment of it.
            output=16 + 2 * (number * 37 % 100),
            prompt=8 + number % 60,
            model=MODELS[number // 2 % 2],
            once=kind == 3,
            leave_after=12 if kind == 7 else 0,
        )
        made.append(one)
        if kind == 5:
            made.append(Asked(one.account_id, one.spec))
    return made[:count]


async def killed_under_load(
    world: WholeWorld, name: str, count: int, kill: Callable[[], Awaitable[None]]
) -> list[Asked]:
    """Send `count` requests at once and kill when some have ended and many stream. Gives what was
    answered in the end. A load that was over when one could have looked is followed by another.
    """
    deadline = time.monotonic() + WAIT_S
    answered: list[Asked] = []
    for turn in itertools.count():
        sent = many(f"{name}-{turn}", count)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(world.ask(one)) for one in sent]
            while not (over := all(task.done() for task in tasks)) and (
                sum(task.done() for task in tasks) < 3
                or sum(one.streaming for one in sent) < count // 4
            ):
                assert time.monotonic() < deadline, "the load never got under way"
                await asyncio.sleep(0.005)
            if not over:
                await kill()
        answered += [task.result() for task in tasks]
        if not over:
            break
    return answered


async def lost_under_load(
    world: WholeWorld, name: str, count: int, kill: Callable[[], Awaitable[None]]
) -> tuple[list[Asked], list[Asked]]:
    """As killed_under_load, until a kill cut off some requests; gives what was answered, and them.

    On a busy machine the engine may be done with all by the time it is killed: then once more.
    """
    sent: list[Asked] = []
    for turn in range(LOADS_MOST):
        sent += await killed_under_load(world, f"{name}-{turn}", count, kill)
        if lost := lost_of(world, name):
            return sent, lost
    raise AssertionError(f"{LOADS_MOST} kills cut off nothing")


def check_completed(sent: Sequence[Asked]) -> None:
    """All but those that left on purpose have a whole answer."""
    left = [one for one in sent if one.leave_after]
    assert all(one.summary is not None for one in left)
    assert all(one.completed for one in sent if not one.leave_after)


@pytest.mark.parametrize("part", ROUNDS)
async def test_a_part_is_killed_while_requests_stream(world: WholeWorld, part: str) -> None:
    """Callers notice nothing; all of it is charged once."""
    stack = world.stack

    async def kill() -> None:
        await asyncio.to_thread(stack.kill, part)

    sent = await killed_under_load(world, part, ROUNDS[part], kill)
    await asyncio.to_thread(stack.wait_ready, part, WAIT_S)
    check_completed(sent)
    # None of these parts is on the way of a request under way: no answer had to be asked anew.
    assert not [one for one in sent if one.request_id.endswith("-anew")]
    await world.check_everything(sent)


async def test_one_request_many_callers_one_charge(world: WholeWorld) -> None:
    """At once and one after the other."""
    before = (await world.conservation()).engines[-1].reading.generation_tokens
    callers = [
        request(ACCOUNTS[0], "asked-often", 1, output=40, once=bool(number % 2))
        for number in range(12)
    ]
    await asyncio.gather(*(world.ask(one) for one in callers))
    for one in callers[:2]:
        again_asked = await world.ask(Asked(one.account_id, one.spec, one.once))
        assert again_asked.replayed
    after = (await world.conservation()).engines[-1].reading.generation_tokens
    assert after - before == 40
    await world.check_everything(callers[:1])


async def test_inference_is_killed_while_requests_stream(world: WholeWorld) -> None:
    """What was answered stays answered, over the restart too; what was lost is charged as handed
    over; what its caller asks for anew is charged once.
    """
    stack = world.stack
    early = await world.ask(request(ACCOUNTS[0], "over-the-restart", 2, output=30))

    async def kill() -> None:
        await asyncio.to_thread(stack.kill, "inference")

    sent, lost = await lost_under_load(world, "inference", 100, kill)
    check_completed(sent)
    for one in [early, *[one for one in sent if one.completed][:10]]:
        repeat = await world.ask(Asked(one.account_id, one.spec))
        assert repeat.replayed
    await world.check_everything([*sent, *lost])


async def test_the_engines_core_is_killed_while_requests_stream(world: WholeWorld) -> None:
    """The service settles what ran, and comes back with a new engine."""
    stack = world.stack

    async def kill() -> None:
        service = stack.process("inference").pid
        [core] = psutil.Process(service).children()
        core.kill()
        await asyncio.to_thread(psutil.wait_procs, [core], WAIT_S)

    sent, lost = await lost_under_load(world, "core", 50, kill)
    check_completed(sent)
    await world.check_everything([*sent, *lost])


async def test_inference_stops_in_order_while_requests_stream(world: WholeWorld) -> None:
    """It settles what runs, and says of each of its streams where it ends: nothing is open."""
    stack = world.stack

    async def stop() -> None:
        await asyncio.to_thread(stack.hold, "inference", WAIT_S)
        await until("every stream of the service is closed in the log", all_closed)
        await asyncio.to_thread(stack.release, "inference", WAIT_S)

    async def all_closed() -> bool:
        answer = await world.ledger.ListStreams(ledger_pb2.ListStreamsRequest(page_size=1_000))
        assert not answer.next_page_token
        streams = [one for one in answer.streams if one.stream_id.startswith("inference")]
        assert streams
        return all(one.closed and not one.missing for one in streams)

    sent = await killed_under_load(world, "stopped", 40, stop)
    check_completed(sent)
    await world.check_everything(sent)


def lost_of(world: WholeWorld, name: str) -> list[Asked]:
    """The requests of a round that the engine's end cut off; their callers asked anew."""
    return [
        one
        for one in world.asked.values()
        if one.request_id.startswith(f"{name}-")
        and one.summary is not None
        and one.summary.outcome == usage_pb2.OUTCOME_ENGINE_LOST
    ]


async def test_everything_is_killed_and_nothing_is_lost(world: WholeWorld) -> None:
    """Of all parts and their supervisor at once, while requests stream."""
    stack = world.stack
    await world.check_everything([])
    bystander = await world.balance(BYSTANDER)
    before = await world.logs()

    async def kill() -> None:
        await asyncio.to_thread(stack.kill_all)
        owner = process_id(os.getpid())
        await asyncio.to_thread(lambda: stack.up(owner=owner))

    sent = await killed_under_load(world, "everything", 50, kill)
    check_completed(sent)
    await world.check_everything(sent)
    assert (await world.balance(BYSTANDER)).balance == bystander.balance
    # What was in the logs is in them, where it was.
    for log, state in before.items():
        if not state.size:
            continue
        proof = await again(
            lambda log=log, state=state: world.ledger.GetConsistencyProof(  # type: ignore[misc]
                ledger_pb2.GetConsistencyProofRequest(log=log, first_size=state.size), timeout=10
            )
        )
        assert proof.first_root == state.root


async def test_the_log_holds_all_of_it_and_an_outsider_agrees(
    world: WholeWorld, others_conflicts: int, tmp_path: Path
) -> None:
    """After all that: the logs are whole, and an export of them is audited without a finding."""
    await world.check_everything(world.asked.values())
    assert await conflicts(world) == others_conflicts
    check_streams(await world.leaves(), world)
    answer = await again(lambda: world.control.CreateCut(pricing_pb2.CreateCutRequest()))
    sums = answer.cut.conservation
    assert sums.engine_tokens == sums.event_tokens + sums.waste_tokens
    keys = tmp_path / "keys"
    shutil.copy(world.environment["TOLLBOOK_VERIFIER_KEYS"], keys)
    exported = await world.tollbook("export", str(tmp_path / "export"))
    assert exported.returncode == 0, exported.stderr
    audited = await audit_alone(tmp_path / "export", keys)
    assert audited.returncode == 0, audited.stdout + audited.stderr
    report: dict[str, Any] = json.loads(audited.stdout)
    charged = {line["account_id"]: int(line["charged_pico"]) for line in report["accounts"]}
    for account_id, account in world.accounts.items():
        assert charged[account_id] == account.charged


def check_streams(found: dict[str, list[bytes]], world: WholeWorld) -> None:
    """Producers' streams have no gap, and each request that was asked has one accepted event."""
    account_ids = {account_id for account_id, _ in world.asked}
    streams: dict[str, set[int]] = {}
    events: list[tuple[str, str]] = []
    for log_leaves in found.values():
        for data in log_leaves:
            leaf = leaves.decode(data)
            if leaf.disposition != ledger_pb2.DISPOSITION_ACCEPTED:
                continue
            record = usage_pb2.UsageRecord.FromString(leaf.value)
            numbers = streams.setdefault(record.stream_id, set())
            assert record.stream_seq not in numbers
            numbers.add(record.stream_seq)
            event = usage_pb2.UsageEvent.FromString(record.usage_event)
            if event.account_id in account_ids:
                events.append((event.account_id, event.event_id))
    assert sorted(events) == sorted(world.asked)
    inference = {name: numbers for name, numbers in streams.items() if name.startswith("inference")}
    # Three engines died, each with a stream in some partition at the least.
    assert len(inference) >= 4
    for name, numbers in inference.items():
        assert numbers == set(range(len(numbers))), name
