"""Conservation: requests of every kind at once, processes killed under them, not a token astray.

The real service, engine and broker. Ordinarily a few hundred requests and one kill of each kind;
`make conservation` is the long form. It ends in one table, made from the topic alone, as an
auditor would: what the engines counted is what rating bills, what it charges nobody for by outcome,
and itemised waste, residual exactly 0.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import grpc.aio
import pytest
from tests.chaos.conservation_table import situation_of, table
from tests.integration.inference_service import (
    KeyServer,
    Place,
    Service,
    chat,
    check_conserved,
    events_of,
    output_of,
    tokens,
    topic,
    undelivered_of,
)

from inference import tinymodel
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

REQUESTS: Final = int(os.environ.get("TOLLBOOK_CONSERVATION_REQUESTS", "330"))
# One of the service and one of the engine's core for each of these; at least one of both.
KILLS: Final = max(2, REQUESTS // 2_500)
SEED: Final = os.environ.get("TOLLBOOK_CONSERVATION_SEED", "conservation")
AT_ONCE: Final = 24
WAIT_S: Final = 300
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

TRAILER: Final = "tollbook-usage-bin"
SCHEMA: Final = '{"enum": ["toll", "bridge", "lane", "gate"]}'


class House:
    """The service over its lives: killed, and started again, while callers come."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.kills: Counter[str] = Counter()
        self.up = asyncio.Event()
        self._lives: list[Service] = []

    @property
    def service(self) -> Service:
        return self._lives[-1]

    async def start(self) -> None:
        self._lives.append(Service(self.place))
        await self.service.ready()
        self.up.set()

    async def kill(self, what: str) -> None:
        """Kill a process with signal 9 and start the service again."""
        process = self.service.process
        self.up.clear()
        if what == "core":
            self.service.core().kill()
        else:
            process.kill()
        status = await asyncio.to_thread(process.wait, 120)
        assert status == (1 if what == "core" else -9), self.service.log.read_text()[-3000:]
        self.kills[what] += 1
        await self.start()

    async def end(self) -> None:
        if self._lives and self.service.process.poll() is None:
            self.service.process.kill()
        for life in self._lives:
            await life.ended()


@dataclass
class Told:
    """What callers of one request were told."""

    ids: int = 0
    summary: inference.UsageSummary | None = None
    left: bool = False
    refused: grpc.StatusCode | None = None

    def settle(self, summary: inference.UsageSummary) -> None:
        """Whoever is told of one request is told the same."""
        if self.summary is not None:
            assert self.summary == summary
        self.summary = summary


@dataclass
class Crowd:
    """All requests, by the id that they came under."""

    house: House
    told: dict[tuple[str, str], Told] = field(default_factory=dict)

    async def finally_(
        self, account: str, spec: inference.GenerationSpec, call: Callable[[Told], Awaitable[None]]
    ) -> None:
        """Call until there is an answer: what was never settled is asked again, by its id."""
        told = self.told.setdefault((account, spec.request_id), Told())
        deadline = time.monotonic() + WAIT_S
        while True:
            await asyncio.wait_for(self.house.up.wait(), WAIT_S)
            try:
                return await call(told)
            except grpc.aio.AioRpcError as error:
                trailing = dict(error.trailing_metadata() or ())
                if TRAILER in trailing:
                    return told.settle(inference.UsageSummary.FromString(trailing[TRAILER]))
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    told.left = True
                    return None
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    told.refused = error.code()
                    return None
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def once(
        self, account: str, spec: inference.GenerationSpec, timeout_s: float | None = None
    ) -> None:
        async def call(told: Told) -> None:
            answer = await self.house.service.once(spec, account, timeout=timeout_s)
            told.ids = max(told.ids, sum(len(choice.token_ids) for choice in answer.choices))
            told.settle(answer.usage)

        await self.finally_(account, spec, call)

    async def stream(
        self,
        account: str,
        spec: inference.GenerationSpec,
        leave_after: int | None = None,
        pause_s: float = 0.0,
        timeout_s: float | None = None,
    ) -> None:
        async def call(told: Told) -> None:
            stream = self.house.service.stream(spec, account, timeout=timeout_s)
            seen = chunks = 0
            async for message in stream:
                seen += len(message.delta.token_ids)
                told.ids = max(told.ids, seen)
                if message.HasField("usage"):
                    told.settle(message.usage)
                if message.HasField("delta"):
                    chunks += 1
                if leave_after is not None and chunks >= leave_after:
                    told.left = True
                    stream.cancel()
                    return
                # A slow reader is one that waits between reads: there is nothing to poll.
                await asyncio.sleep(pause_s)

        await self.finally_(account, spec, call)


Situation = Callable[[Crowd, random.Random, str, str], Awaitable[None]]


def _text(source: random.Random) -> str:
    return "the toll of a lane " * source.randrange(1, 12)


async def _stream(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=source.randrange(1, 60))
    await crowd.stream(account, spec)


async def _once(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    await crowd.once(account, chat(_text(source), name, max_tokens=source.randrange(1, 60)))


async def _choices(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=source.randrange(1, 40), n=source.randrange(2, 5))
    await (crowd.stream if source.random() < 0.5 else crowd.once)(account, spec)


async def _stop_string(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    stop = source.sample([" a", "e", "th", "n", ". "], 2)
    spec = chat(_text(source), name, max_tokens=60, stop=stop, ignore_eos=True)
    await (crowd.stream if source.random() < 0.5 else crowd.once)(account, spec)


async def _cached_prefix(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    begin = source.randrange(4) * 50 + 300
    ids = [*range(begin, begin + 96), *(source.randrange(300, 900) for _ in range(8))]
    await crowd.once(account, tokens(ids, name, max_tokens=8, ignore_eos=True))


async def _structured(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=source.choice((2, 40)), json_schema=SCHEMA)
    await crowd.once(account, spec)


async def _adapter(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, "tiny-support", max_tokens=source.randrange(1, 60))
    await (crowd.stream if source.random() < 0.5 else crowd.once)(account, spec)


async def _over_length(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    await crowd.once(account, tokens([7] * source.choice((4_096, 5_000)), name))


async def _to_the_context(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    prompt = 4_096 - source.randrange(1, 8)
    await crowd.once(account, tokens([7] * prompt, name, max_tokens=50, ignore_eos=True))


async def _abort(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    n = source.choice((1, 1, 3))
    spec = chat(_text(source), name, max_tokens=400, ignore_eos=True, n=n)
    await crowd.stream(account, spec, leave_after=source.randrange(0, 40))


async def _deadline(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=2_000, ignore_eos=True)
    timeout_s = source.uniform(0.02, 1.5)
    await (crowd.stream if source.random() < 0.5 else crowd.once)(
        account, spec, timeout_s=timeout_s
    )


async def _slow_reader(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=150, ignore_eos=True)
    leave = source.choice((None, source.randrange(2, 6)))
    await crowd.stream(account, spec, leave_after=leave, pause_s=source.uniform(0.05, 0.3))


async def _duplicate(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=source.randrange(1, 50), ignore_eos=True)
    calls = [crowd.stream(account, spec), crowd.once(account, spec), crowd.stream(account, spec)]
    await asyncio.gather(*calls)
    # And again, when it is over.
    await crowd.once(account, spec)


SITUATIONS: Final[dict[str, Situation]] = {
    "stream": _stream,
    "once": _once,
    "choices": _choices,
    "stop-string": _stop_string,
    "cached-prefix": _cached_prefix,
    "structured": _structured,
    "adapter": _adapter,
    "over-length": _over_length,
    "to-the-context": _to_the_context,
    "abort": _abort,
    "deadline": _deadline,
    "slow-reader": _slow_reader,
    "duplicate": _duplicate,
}
# Costly for the machine and no more telling for being many.
RARE: Final = {"to-the-context": 0.2, "slow-reader": 0.5, "deadline": 0.5}


def plan(source: random.Random) -> list[str]:
    """The situation of each request, in order; every situation comes."""
    names = list(SITUATIONS)
    weights = [RARE.get(name, 1.0) for name in names]
    drawn = names + source.choices(names, weights, k=max(0, REQUESTS - len(names)))
    source.shuffle(drawn)
    return drawn


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


async def test_every_token_is_billed_or_itemised(
    kafka: str, keys: KeyServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("conservation")
    tinymodel.make(folder / "tiny")
    source = random.Random(SEED)
    planned = plan(source)
    waiting = iter(enumerate(planned))
    # Longer than anything here takes: a stop in order waits for whoever is under way.
    patient = {"TOLLBOOK_DRAIN_MS": "120000"}
    house = House(Place(folder, kafka, keys.address, folder / "tiny", patient))
    crowd = Crowd(house)
    begun = 0
    watched = 0

    async def come() -> None:
        nonlocal begun
        for number, name in waiting:
            begun = number + 1
            own = random.Random(f"{SEED}/{number}")
            account = f"acct-{own.randrange(16)}"
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
    received = await topic(kafka)
    said, residual = table(received, planned, house.kills)
    print(f"\n{said}")
    assert residual == 0
    assert len(check_conserved(received)) == KILLS + 1
    closed = {i.record.stream_id for i in received if i.record.HasField("stream_close")}
    assert closed == {item.record.stream_id for item in received}
    events = events_of(received)
    assert set(events) <= set(crowd.told)
    assert len(crowd.told) == len(planned)
    for key, told in crowd.told.items():
        check_row(situation_of(key[1]), told, events.get(key))
