"""Conservation: requests of every kind at once, processes killed under them, not a token astray.

The real service, engine, broker, ledger and pricing. Ordinarily a few hundred requests and one kill
of each kind; `make conservation` is the long form. It ends in one table: what the engines counted,
by the topic, is what the running services charge, by receipts, postings and balances, what they
charge nobody for by outcome, and itemised waste, residual exactly 0.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import grpc.aio
import pytest
import pytest_asyncio
from tests.chaos.conservation_books import Books
from tests.chaos.conservation_crowd import WAIT_S, Crowd, House, Told
from tests.chaos.conservation_situations import SITUATIONS, plan
from tests.chaos.conservation_table import situation_of, table
from tests.integration.inference_service import (
    ACCOUNTS,
    Place,
    chat,
    check_conserved,
    events_of,
    metered_of,
    output_of,
    topic,
    undelivered_of,
)

from tollbook.stack import running_stack
from tollbook.stack.catalogue import tiny_model_folder
from tollbook.usage.v1 import usage_pb2 as usage

REQUESTS: Final = int(os.environ.get("TOLLBOOK_CONSERVATION_REQUESTS", "330"))
# One of the service and one of the engine's core for each of these; at least one of both.
KILLS: Final = max(2, REQUESTS // 2_500)
SEED: Final = os.environ.get("TOLLBOOK_CONSERVATION_SEED", "conservation")
AT_ONCE: Final = 24
# Nobody asks for checkpoints here: no signer.
PARTS: Final = ("model", "ledger-server", "ledger-worker", "pricing-server", "pricing-projector")
# Requests that a stop in order finds under way, and their length.
DRAINED: Final = 8
DRAINED_TOKENS: Final = 600

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.chaos,
    pytest.mark.timeout(600 + REQUESTS),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def books() -> AsyncIterator[Books]:
    """Broker, ledger and pricing of the module's own: the topic has what it sends and no more."""
    with running_stack(parts=PARTS) as stack:
        async with Books(stack) as made:
            await made.open_accounts()
            yield made


def check_row(name: str, told: Told, event: usage.UsageEvent | None) -> None:
    """What callers saw of a request beside its event."""
    if name == "over-length":
        assert (told.refused, event) == (grpc.StatusCode.INVALID_ARGUMENT, None), told
        return
    assert told.refused is None, (name, told)
    if event is None:
        # It may have left before the engine saw anything; then nothing was told either.
        assert told.left, (name, told)
        assert not told.ids
        return
    if told.summary is not None:
        assert list(event.quantities) == list(told.summary.quantities)
        assert event.outcome == told.summary.outcome
    # Told is billable: nothing reached a caller that is not in the event.
    assert told.ids <= output_of(event), (name, told, event)
    cached = sum(q.amount for q in event.quantities if q.cache_use == usage.CACHE_USE_READ)
    prompt = sum(q.amount for q in event.quantities if q.direction == usage.DIRECTION_IN)
    assert cached <= prompt
    if event.outcome in (usage.OUTCOME_COMPLETE, usage.OUTCOME_EMPTY):
        assert undelivered_of(event) == 0
    elif name not in ("abort", "deadline", "slow-reader"):
        assert event.outcome == usage.OUTCOME_ENGINE_LOST, (name, event)


async def stop_under_load(crowd: Crowd) -> list[str]:
    """SIGTERM while requests stream: who comes then is refused, and those go on to their end.
    Gives their situations.
    """
    service = crowd.house.service
    flowing = [asyncio.Event() for _ in range(DRAINED)]

    async def stream(number: int) -> None:
        spec = chat("go on", f"c:drained:{number}", max_tokens=DRAINED_TOKENS, ignore_eos=True)
        told = crowd.told.setdefault(("acct-0", spec.request_id), Told())
        async for message in service.stream(spec):
            told.ids += len(message.delta.token_ids)
            if told.ids:
                flowing[number].set()
            if message.HasField("usage"):
                told.settle(message.usage)

    streams = [asyncio.create_task(stream(number)) for number in range(DRAINED)]
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in flowing)), WAIT_S)
    service.process.terminate()
    late = 0
    while True:
        name = f"c:late:{late}"
        try:
            answer = await service.once(chat("late", name, max_tokens=1, ignore_eos=True))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            break
        # Before the signal was seen.
        crowd.told[("acct-0", name)] = Told(1, answer.usage)
        late += 1
    await asyncio.gather(*streams)
    assert await asyncio.to_thread(service.process.wait, 60) == 0
    for number in range(DRAINED):
        told = crowd.told[("acct-0", f"c:drained:{number}")]
        assert told.ids == DRAINED_TOKENS
        assert told.summary is not None
        assert told.summary.outcome == usage.OUTCOME_COMPLETE
    return ["drained"] * DRAINED + ["late"] * late


async def test_every_token_is_billed_or_itemised(books: Books, tmp_path: Path) -> None:
    source = random.Random(SEED)
    planned = plan(source, REQUESTS)
    waiting = iter(enumerate(planned))
    stack = books.stack
    house = House(
        Place(
            tmp_path,
            stack.address("kafka"),
            stack.address("pricing-server"),
            tiny_model_folder(),
            # Longer than anything here takes: a stop in order waits for whoever is under way.
            {"TOLLBOOK_DRAIN_MS": "120000"},
            stack.address("inference"),
        )
    )
    crowd = Crowd(house)
    begun = 0
    watched = 0

    async def come() -> None:
        nonlocal begun
        for number, name in waiting:
            begun = number + 1
            own = random.Random(f"{SEED}/{number}")
            account = ACCOUNTS[own.randrange(len(ACCOUNTS))]
            await SITUATIONS[name](crowd, own, account, f"c:{name}:{number}")

    async def kill() -> None:
        """At random counts of requests begun, and a random moment after it."""
        at = sorted(source.randrange(REQUESTS // 10, REQUESTS * 9 // 10) for _ in range(KILLS))
        for turn, count in enumerate(at):
            while begun < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await asyncio.sleep(source.uniform(0, 1))
            await house.kill(("service", "core")[turn % 2])

    async def watch() -> None:
        """The running figure is 0 at every look."""
        nonlocal watched
        while True:
            await house.up.wait()
            try:
                state = await house.service.conservation()
            except (grpc.aio.AioRpcError, asyncio.CancelledError):
                if house.up.is_set() and house.service.process.poll() is None:
                    raise
            else:
                assert [e.residual_tokens for e in state.engines] == [0] * len(state.engines)
                watched += 1
            await asyncio.sleep(1)

    try:
        await house.start()
        watching = asyncio.create_task(watch())
        killing = asyncio.create_task(kill())
        await asyncio.gather(*(come() for _ in range(AT_ONCE)), killing)
        await house.service.engine()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert watching.cancelled(), watching.exception()
        assert watched
        planned += await stop_under_load(crowd)
    finally:
        await house.end()
    received = await topic(stack.address("kafka"))
    assert len(check_conserved(received)) == KILLS + 1
    closed = {i.record.stream_id for i in received if i.record.HasField("stream_close")}
    assert closed == {item.record.stream_id for item in received}
    events = events_of(received)
    receipts = await books.charged(events)
    said, residual = table(received, receipts, planned, house.kills)
    print(f"\n{said}")
    assert residual == 0
    in_events, counted, wasted = await books.sums()
    assert in_events == sum(metered_of(event) for event in events.values())
    assert counted == in_events + wasted
    assert set(events) <= set(crowd.told)
    assert len(crowd.told) == len(planned)
    for key, told in crowd.told.items():
        check_row(situation_of(key[1]), told, events.get(key))
