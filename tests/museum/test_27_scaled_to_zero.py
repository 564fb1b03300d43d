"""A model scaled to zero answered 404 and never woke: production-stack#1003.

Here the first wakes the engine and all wait for it: each is answered, and stands in the log
once. What the engine's presence and its start cost is metered apart from tokens.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio
from tests.integration.inference_service import (
    KeyServer,
    Place,
    Service,
    chat,
    check_conserved,
    events_of,
    eventually_in_topic,
    output_of,
    serving,
    tokens,
    topic,
)

from inference import tinymodel
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = [
    pytest.mark.museum,
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

HOUSE = "acct-15"
REQUESTS = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    kafka: str, keys: KeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("asleep")
    tinymodel.make(folder / "tiny")
    environment = {
        "TOLLBOOK_IDLE_TIMEOUT_MS": "200",
        "TOLLBOOK_RESIDENCY_ACCOUNT": HOUSE,
        "TOLLBOOK_RESIDENCY_SLICE_MS": "500",
    }
    place = Place(folder, kafka, keys.address, folder / "tiny", environment)
    async with serving(place) as running:
        yield running


def cores(service: Service) -> list[psutil.Process]:
    """Processes that hold a model: those forked by the one that waits to fork them."""
    waiting = psutil.Process(service.process.pid).children()
    return [core for process in waiting for core in process.children()]


async def asleep(service: Service, times: int) -> None:
    """Return when it fell asleep for that time, and no core is left."""
    deadline = time.monotonic() + 120
    while service.log.read_text().count('"the engine sleeps"') < times or cores(service):
        assert time.monotonic() < deadline, service.log.read_text()[-3000:]
        await asyncio.sleep(0.05)


async def test_a_hundred_requests_at_zero_none_lost_none_twice(service: Service) -> None:
    await asleep(service, 1)
    # The one who wakes it stays until all are answered: where the hundred come slowly, the later
    # ones would else find it asleep again.
    staying = service.stream(chat("stay", "stays", max_tokens=3_900, ignore_eos=True))
    assert (await anext(aiter(staying))).HasField("started")
    specs = [chat(f"toll {n}", f"zero-{n}", max_tokens=8 + n % 5) for n in range(REQUESTS)]
    accounts = [f"acct-{n % 7}" for n in range(REQUESTS)]
    # Every fifth is sent twice, as impatient callers do.
    sent = [*zip(specs, accounts, strict=True), *list(zip(specs, accounts, strict=True))[::5]]
    answers = await asyncio.gather(*(service.once(spec, account) for spec, account in sent))
    staying.cancel()
    told = {
        (account, answer.request_id): answer.usage.output_tokens
        for (_, account), answer in zip(sent, answers, strict=True)
    }
    assert len(told) == REQUESTS
    events = events_of(await eventually_in_topic(service.place.kafka, set(told)))
    assert {key: output_of(events[key]) for key in told} == told
    assert {events[key].outcome for key in told} <= {
        usage.OUTCOME_COMPLETE,
        usage.OUTCOME_EMPTY,
    }
    assert service.log.read_text().count('"the engine is awake"') == 1


async def test_it_sleeps_again_and_the_next_one_is_served_with_the_adapter_too(
    service: Service,
) -> None:
    await asleep(service, 2)
    base = await service.once(chat("again", "again-base", max_tokens=12, temperature=0))
    adapter = await service.once(
        chat("again", "again-adapter", model="tiny-support", max_tokens=12, temperature=0)
    )
    assert base.choices[0].token_ids != adapter.choices[0].token_ids
    # A prompt that is refused wakes nobody.
    await asleep(service, 3)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        await service.once(chat("word " * 9_000, "too-long"))
    assert not cores(service)


async def test_what_it_had_cached_is_gone_when_it_wakes(service: Service) -> None:
    asked = [
        tokens(range(400, 500), f"cached-{n}", max_tokens=2, ignore_eos=True) for n in range(3)
    ]
    # While one streams it does not fall asleep between two others.
    stream = service.stream(chat("awake", "awake", max_tokens=3_900, ignore_eos=True))
    messages = aiter(stream)
    assert (await anext(messages)).HasField("started")
    fresh, cached = [await service.once(one) for one in asked[:2]]
    times = service.log.read_text().count('"the engine sleeps"')
    stream.cancel()
    await asleep(service, times + 1)
    woken = await service.once(asked[2])
    told = [one.usage.cached_tokens for one in (fresh, cached, woken)]
    assert told == [0, 96, 0]
    assert {one.usage.prompt_tokens for one in (fresh, cached, woken)} == {100}


async def test_presence_and_starts_are_metered_and_nothing_is_left_over(service: Service) -> None:
    processes = psutil.Process(service.process.pid).children(recursive=True)
    assert await service.end() == 0
    _, left = await asyncio.to_thread(psutil.wait_procs, processes, 120)
    assert left == []
    received = await topic(service.place.kafka)
    check_conserved(received)
    house = [event for (account, _), event in events_of(received).items() if account == HOUSE]
    amounts = {usage.UNIT_MODEL_START_MS: 0, usage.UNIT_MODEL_RESIDENT_MS: 0}
    for event in house:
        (leaf,) = event.quantities
        amounts[leaf.unit] += leaf.amount
        assert output_of(event) == 0
        assert event.served_model == "tiny"
    spans = sorted(
        (event.event_time.ToNanoseconds(), event.end_time.ToNanoseconds()) for event in house
    )
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    # A long one is in pieces, end to end: as many begin as the engine came up.
    starts = [
        event.event_time.ToNanoseconds()
        for event in house
        if event.quantities[0].unit == usage.UNIT_MODEL_START_MS
    ]
    ends = {end for _, end in spans}
    wakings = service.log.read_text().count('"the engine is awake"')
    assert wakings >= 2
    assert len([start for start in starts if start not in ends]) == 1 + wakings
    assert all(amounts.values())
