"""An engine that sleeps: whoever asks waits for it, it wakes once, and nobody is put to sleep."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.inference.scripted import ScriptedEngine

from inference import engine as port
from inference.app.dozing import AWAY, Dozing
from inference.domain.residency import Presence, Slice
from kernel import errors
from kernel.clock import SystemClock
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage


class Sleeper(ScriptedEngine):
    """Goes to sleep and wakes when `may_suspend` and `may_resume` are set."""

    def __init__(self) -> None:
        super().__init__()
        self.slept = asyncio.Event()
        self.may_suspend = asyncio.Event()
        self.may_suspend.set()
        self.may_resume = asyncio.Event()
        self.resuming = asyncio.Event()
        self.resumes = 0
        self.broken = False
        self.there = True

    async def suspend(self) -> None:
        self.slept.set()
        await self.may_suspend.wait()
        assert not self.running
        self.there = False

    async def resume(self) -> int:
        assert not self.there
        self.resumes += 1
        self.resuming.set()
        await self.may_resume.wait()
        if self.broken:
            raise port.EngineLost("no memory")
        self.there = True
        return 4


class World:
    def __init__(self, wake_ms: int = 60_000) -> None:
        self.engine = Sleeper()
        self.dozing = Dozing(self.engine, SystemClock(), 1, wake_ms)
        self.changes: list[int] = []
        self.waste: list[int] = []
        self.dozing.on_change = self.changes.append
        self.dozing.on_warm_up = self.waste.append
        self.numbers = iter(range(10_000))
        self.watching: asyncio.Task[None] | None = None

    async def asleep(self) -> None:
        """Started, and asleep by itself."""
        await self.dozing.start()
        self.watching = asyncio.create_task(self.dozing.watch_for_ever())
        await self.engine.slept.wait()

    async def ask(self) -> list[port.Event]:
        job = port.Job(
            f"r{next(self.numbers)}",
            port.Target("tiny", "tiny", ""),
            port.Prompt([1], ""),
            inference.SamplingParams(),
            1,
            1,
            {},
        )
        events = []
        async for event in self.dozing.generate(job):
            assert self.engine.there
            events.append(event)
        return events

    async def answer(self) -> None:
        """Answer whatever is asked, for ever."""
        while True:
            running = await self.engine.next_run()
            for each in list(self.engine.running.values()):
                if each.events.empty():
                    self.engine.say(each, 0, [7])
                    self.engine.finish(each)
            del running
            self.engine.running.clear()


async def test_a_hundred_that_come_at_zero_wake_it_once_and_are_all_served() -> None:
    world = World()
    await world.asleep()
    asked = [asyncio.create_task(world.ask()) for _ in range(100)]
    await world.engine.resuming.wait()
    # One that is given up takes nobody's waking along.
    asked[0].cancel()
    answering = asyncio.create_task(world.answer())
    world.engine.may_resume.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(events[-1], port.Ended) for events in answers[1:] if events)  # type: ignore[index]
    assert world.engine.runs == 99
    assert world.engine.resumes == 1
    assert world.waste == [4]
    assert world.changes[:3] == [AWAY, usage.UNIT_MODEL_START_MS, usage.UNIT_MODEL_RESIDENT_MS]
    answering.cancel()


async def test_who_comes_while_it_falls_asleep_is_served_after_it_woke() -> None:
    world = World()
    world.engine.may_suspend.clear()
    world.engine.may_resume.set()
    await world.asleep()
    asked = asyncio.create_task(world.ask())
    answering = asyncio.create_task(world.answer())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not world.engine.resumes
    world.engine.may_suspend.set()
    assert isinstance((await asked)[-1], port.Ended)
    answering.cancel()


async def test_it_never_sleeps_under_a_request_however_long() -> None:
    world = World()
    await world.dozing.start()
    asked = asyncio.create_task(world.ask())
    running = await world.engine.next_run()
    watching = asyncio.create_task(world.dozing.watch_for_ever())
    for _ in range(5):
        # Five times as long as it takes to sleep.
        await asyncio.sleep(0.002)
    assert not world.engine.slept.is_set()
    world.engine.running.clear()
    world.engine.finish(running)
    await asked
    await world.engine.slept.wait()
    watching.cancel()


async def test_an_engine_that_does_not_wake_refuses_all_who_wait_and_is_lost() -> None:
    world = World()
    await world.asleep()
    world.engine.broken = True
    asked = [asyncio.create_task(world.ask()) for _ in range(3)]
    lost = asyncio.create_task(world.dozing.wait_lost())
    world.engine.may_resume.set()
    for refused in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(refused, errors.Unavailable)
        assert refused.reason == "STARTING"
    await lost
    assert world.changes[-1] == AWAY


async def test_a_wait_for_the_waking_has_an_end_and_the_waking_goes_on() -> None:
    world = World(wake_ms=50)
    await world.asleep()
    with pytest.raises(errors.Unavailable, match="within 50 ms"):
        await world.ask()
    awake = asyncio.Event()
    world.dozing.on_warm_up = lambda _tokens: awake.set()
    world.engine.may_resume.set()
    await awake.wait()
    assert world.engine.resumes == 1


MOMENTS = st.lists(
    st.tuples(
        st.sampled_from([AWAY, usage.UNIT_MODEL_START_MS, usage.UNIT_MODEL_RESIDENT_MS, None]),
        st.integers(0, 10_000_000),
    ),
    max_size=20,
)


@given(MOMENTS, st.integers(1, 1_000_000))
def test_slices_sum_to_the_whole_time_that_it_was_there(
    moments: list[tuple[int | None, int]], slice_us: int
) -> None:
    presence = Presence(slice_us)
    slices: list[Slice] = []
    now_us, unit = 0, AWAY
    there: dict[int, int] = {}
    for change, later_us in moments:
        before_us, now_us = now_us, now_us + later_us
        if unit:
            there[unit] = there.get(unit, 0) + now_us // 1_000 - before_us // 1_000
        if change is None:
            slices += presence.due(now_us)
        else:
            slices += presence.change(change, now_us)
            unit = change
    slices += presence.change(AWAY, now_us)
    found: dict[int, int] = {}
    for piece in slices:
        assert piece.amount_ms > 0
        found[piece.unit] = found.get(piece.unit, 0) + piece.amount_ms
    assert found == {unit: amount for unit, amount in there.items() if amount}


def test_a_clock_that_goes_back_makes_no_time() -> None:
    presence = Presence(1)
    assert presence.change(usage.UNIT_MODEL_RESIDENT_MS, 5_000_000) == []
    assert presence.due(1_000_000) == []
    assert presence.change(AWAY, 2_000_000) == []
