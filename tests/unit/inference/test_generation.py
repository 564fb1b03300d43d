"""A request's life, with an engine that does what the test says and a real spool on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.inference.scripted import CALLER, Bench, bench, order

from inference import engine as port
from inference.adapters import spool_codec
from inference.adapters.spool import Spool
from inference.adapters.spool_segments import Limits
from inference.app import generation as generation_module
from inference.app.order import Caller, Phase
from inference.app.reader import Reader
from inference.app.recovery import recover
from inference.app.requests import answer_of
from inference.app.streams import Streams
from inference.domain import records
from inference.domain.outcome import End
from kernel import errors
from kernel.clock import SystemClock
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage


@contextlib.asynccontextmanager
async def running(folder: Path, **options: object) -> AsyncIterator[Bench]:
    made = bench(folder, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.requests.settled()
        assert not made.requests.broken.done()
        assert made.books.residual() == 0
        if not made.spool.failed.done():
            await made.spool.close()


def reader_of(made: Bench, spec: inference.GenerationSpec, caller: Caller = CALLER) -> Reader:
    found = made.requests.find(caller, spec)
    assert isinstance(found, Reader)
    return found


async def read_all(reader: Reader, why: End = End.CALLER_LEFT) -> list[inference.GenerateResponse]:
    """As the gRPC handler does: read to the end, then leave."""
    try:
        return [message async for message in reader.stream()]
    finally:
        reader.leave(why)


def event_of(made: Bench, request_id: str = "r") -> usage.UsageEvent:
    record = made.spool.read(made.spool.journal.replays[("acct", request_id)].ref)
    assert isinstance(record, records.Settled)
    return usage.UsageEvent.FromString(record.event)


def output(event: usage.UsageEvent) -> tuple[int, int]:
    """(generated, undelivered) output tokens."""
    leaves = [leaf for leaf in event.quantities if leaf.direction == usage.DIRECTION_OUT]
    return (
        sum(leaf.amount for leaf in leaves),
        sum(leaf.undelivered_amount for leaf in leaves),
    )


def ids_of(messages: list[inference.GenerateResponse], choice: int = 0) -> list[int]:
    return [
        token
        for message in messages
        if message.HasField("delta") and message.delta.choice == choice
        for token in message.delta.token_ids
    ]


async def test_a_plain_request_is_settled_before_its_end_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        reader = reader_of(made, order())
        run = await made.engine.next_run()
        task = asyncio.create_task(read_all(reader))
        run.events.put_nowait(port.Admitted())
        made.engine.say(run, 0, [1, 2, 3], cached=4)
        made.engine.say(run, 0, [4])
        made.engine.finish(run)
        messages = await task
        assert messages[0].WhichOneof("event") == "started"
        assert ids_of(messages) == [1, 2, 3, 4]
        summary = messages[-1].usage
        assert (summary.prompt_tokens, summary.cached_tokens, summary.output_tokens) == (8, 4, 4)
        on_disk = settled_on_disk(tmp_path)
        assert [record.request_id for record in on_disk] == ["r"]
        assert output(event_of(made)) == (4, 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def settled_on_disk(folder: Path) -> list[records.Settled]:
    return [
        record
        for path in sorted(folder.glob("*.spool"))
        for record, _, _ in spool_codec.scan(memoryview(path.read_bytes()))
        if isinstance(record, records.Settled)
    ]


async def test_the_last_caller_leaving_aborts_and_what_comes_after_is_counted(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as made:
        reader = reader_of(made, order())
        run = await made.engine.next_run()
        messages = reader.stream()
        assert (await anext(messages)).HasField("started")
        run.events.put_nowait(port.Admitted())
        made.engine.say(run, 0, [1, 2])
        assert (await anext(messages)).delta.token_ids == [1, 2]
        reader.leave(End.CALLER_LEFT)
        await run.aborted.wait()
        made.engine.say(run, 0, [3, 4, 5])
        made.engine.finish(run, usage.FINISH_REASON_ABORT)
        await made.requests.settled()
        event = event_of(made)
        assert event.outcome == usage.OUTCOME_CLIENT_ABORT
        # The message was yielded and never asked past: gRPC may not have sent it.
        assert output(event) == (5, 5)


@pytest.mark.parametrize("whole", [True, False])
async def test_who_comes_at_the_settlement_gets_nothing_that_is_not_in_it(
    tmp_path: Path, whole: bool
) -> None:
    async with running(tmp_path) as made:
        reader = reader_of(made, order())
        run = await made.engine.next_run()
        messages = reader.stream()
        await anext(messages)
        run.events.put_nowait(port.Admitted())
        made.engine.say(run, 0, [1, 2])
        assert (await anext(messages)).delta.token_ids == [1, 2]
        made.engine.say(run, 0, [3])
        # Asking for more is what hands the first two over.
        assert (await anext(messages)).delta.token_ids == [3]
        reader.leave(End.CALLER_LEFT)
        await run.aborted.wait()
        made.engine.finish(run, usage.FINISH_REASON_ABORT)
        [live] = made.requests._live.values()
        await until(lambda: live.phase is Phase.SETTLING)
        late = reader_of(made, order())
        seen: list[int] = []
        with pytest.raises(errors.Unavailable) as caught:  # noqa: PT012
            if whole:
                await late.whole()
            async for message in late.stream():
                seen += message.delta.token_ids
        # It read as fast as anybody: that is not why.
        assert caught.value.reason == "ENDING"
        assert seen in ([], [1, 2])
        assert output(event_of(made)) == (3, 1)
        again = made.requests.find(CALLER, order())
        assert isinstance(again, records.Settled)
        assert list(answer_of(again).choices[0].token_ids) == [1, 2]


async def test_a_caller_that_leaves_before_admission_costs_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        made.engine.rendering.clear()
        reader = reader_of(made, order())
        await asyncio.sleep(0)
        reader.leave(End.CALLER_LEFT)
        made.engine.rendering.set()
        await made.requests.settled()
        assert made.engine.runs == 0
        assert not made.spool.journal.replays
        # The id is free: it stands for nothing.
        again = reader_of(made, order())
        run = await made.engine.next_run()
        made.engine.finish(run)
        await read_all(again)


async def test_a_caller_that_leaves_before_the_engine_took_it_in_is_aborted_then(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as made:
        reader = reader_of(made, order())
        run = await made.engine.next_run()
        reader.leave(End.DEADLINE)
        await asyncio.sleep(0)
        assert not run.aborted.is_set()
        run.events.put_nowait(port.Admitted())
        await run.aborted.wait()
        made.engine.finish(run, usage.FINISH_REASON_ABORT)
        await made.requests.settled()
        assert event_of(made).outcome == usage.OUTCOME_DEADLINE
        assert output(event_of(made)) == (0, 0)


async def test_a_failure_of_the_engine_is_told_with_its_usage(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        reader = reader_of(made, order())
        run = await made.engine.next_run()
        task = asyncio.create_task(read_all(reader))
        made.engine.say(run, 0, [1, 2])
        run.events.put_nowait(port.EngineFailed("bad kernel"))
        with pytest.raises(errors.Internal):
            await task
        assert reader.summary is not None
        assert reader.summary.output_tokens == 2
        assert event_of(made).outcome == usage.OUTCOME_ERROR_MID_STREAM
        found = made.requests.find(CALLER, order())
        assert isinstance(found, records.Settled)
        assert isinstance(answer_of(found).failure, errors.Internal)


async def test_an_engine_that_dies_loses_what_nobody_saw_and_no_more(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        readers = [reader_of(made, order(f"r{number}")) for number in range(3)]
        tasks = [asyncio.create_task(read_all(reader)) for reader in readers]
        await until(lambda: len(made.engine.running) == 3)
        for number, run in enumerate(made.engine.running.values()):
            made.engine.say(run, 0, list(range(number)))
            run.events.put_nowait(port.EngineLost("gone"))
        # Counted by the engine, and taken away by the exception.
        made.engine.generation_tokens += 7
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, errors.Unavailable) for result in results)
        for number in range(3):
            event = event_of(made, f"r{number}")
            assert event.outcome == usage.OUTCOME_ENGINE_LOST
            assert output(event)[0] == number
        made.books.publish_final(lost=True)
        reading = made.books.book.reading(1)
        assert [(w.kind, w.tokens) for w in reading.waste] == [(usage.WASTE_KIND_ENGINE_LOST, 7)]
        assert reading.generation_tokens == 0 + 1 + 2 + 7


async def test_surplus_after_a_stop_string_is_waste(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        reader = reader_of(made, order())
        run = await made.engine.next_run()
        made.engine.say(run, 0, [1, 2])
        made.engine.finish(run, usage.FINISH_REASON_STOP, surplus=3)
        await read_all(reader)
        assert made.books.residual() == 0
        assert dict(made.books.book.waste) == {usage.WASTE_KIND_AFTER_STOP: 3}


async def test_a_caller_that_never_reads_is_cut_off_and_pays_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "HAND_OVER_MS", 50)
    async with running(tmp_path) as made:
        reader = reader_of(made, order())
        run = await made.engine.next_run()
        messages = reader.stream()
        assert (await anext(messages)).HasField("started")
        made.engine.say(run, 0, [1, 2])
        assert (await anext(messages)).HasField("delta")
        made.engine.say(run, 0, [3])
        made.engine.finish(run)
        await made.requests.settled()
        assert event_of(made).outcome == usage.OUTCOME_CLIENT_ABORT
        assert output(event_of(made)) == (3, 3)
        with pytest.raises(errors.Unavailable) as caught:
            [message async for message in messages]
        assert caught.value.reason == "SLOW_READER"
        reader.leave(End.CALLER_LEFT)
        # Asking again gives what was handed over, for nothing else is charged as delivered.
        found = made.requests.find(CALLER, order())
        assert isinstance(found, records.Settled)
        assert [list(choice.token_ids) for choice in answer_of(found).choices] == [[]]


async def test_what_a_slow_caller_missed_comes_in_one_piece(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        reader = reader_of(made, order())
        run = await made.engine.next_run()
        messages = reader.stream()
        assert (await anext(messages)).HasField("started")
        for token in range(30):
            made.engine.say(run, 0, [token])
        made.engine.finish(run)
        await until(run.events.empty)
        await made.spool.durable()
        delta = (await anext(messages)).delta
        assert list(delta.token_ids) == list(range(30))
        assert delta.text == "x" * 30
        assert (await anext(messages)).HasField("finished")
        assert (await anext(messages)).HasField("usage")
        reader.leave(End.CALLER_LEFT)


async def test_limits(tmp_path: Path) -> None:
    async with running(tmp_path, max_requests=1) as made:
        reader = reader_of(made, order("a"))
        run = await made.engine.next_run()
        with pytest.raises(errors.Unavailable) as caught:
            made.requests.find(CALLER, order("b"))
        assert caught.value.reason == "QUEUE_FULL"
        # Attaching is no new request; but not without end either.
        others = [reader_of(made, order("a")) for _ in range(63)]
        with pytest.raises(errors.Unavailable) as caught:
            made.requests.find(CALLER, order("a"))
        assert caught.value.reason == "TOO_MANY_READERS"
        for other in others:
            other.leave(End.CALLER_LEFT)
        made.engine.finish(run)
        await read_all(reader)


async def test_a_full_spool_refuses_before_the_engine_sees_the_request(tmp_path: Path) -> None:
    small = Limits(segment_bytes=4_096, retain_bytes=4_096, max_bytes=6_000)
    async with running(tmp_path, limits=small) as made:
        with pytest.raises(errors.Unavailable) as caught:
            await read_all(reader_of(made, order()))
        assert caught.value.reason == "SPOOL_FULL"
        assert made.engine.runs == 0


async def test_a_drain_waits_then_cuts_off_and_counts(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        task = asyncio.create_task(read_all(reader_of(made, order())))
        run = await made.engine.next_run()
        run.events.put_nowait(port.Admitted())
        made.engine.say(run, 0, [1])
        made.requests.close(errors.Unavailable("stops", reason="DRAINING"))
        with pytest.raises(errors.Unavailable):
            made.requests.find(CALLER, order("new"))
        draining = asyncio.create_task(made.requests.drain(30))
        await run.aborted.wait()
        made.engine.say(run, 0, [2])
        made.engine.finish(run, usage.FINISH_REASON_ABORT)
        await draining
        with pytest.raises(errors.Unavailable) as caught:
            await task
        assert caught.value.reason == "DRAINING"
        assert event_of(made).outcome == usage.OUTCOME_ERROR_MID_STREAM
        assert output(event_of(made)) == (2, 0)
        # A settled answer is given also while nothing new is taken.
        assert isinstance(made.requests.find(CALLER, order()), records.Settled)


STEPS = st.one_of(
    st.tuples(st.just("say"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("join"), st.booleans(), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("turn"), st.integers(1, 4), st.just(0)),
    st.tuples(st.just("durable"), st.just(0), st.just(0)),
)
ENDS = st.sampled_from(["finish", "fail", "lose"])


@settings(max_examples=120, deadline=None)
@given(choices=st.integers(1, 3), steps=st.lists(STEPS, max_size=25), end=ENDS)
def test_whatever_happens_a_request_is_counted_once_and_whole(
    choices: int, steps: list[tuple[str, int, int]], end: str
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        asyncio.run(_any_life(folder, choices, steps, end))
    finally:
        shutil.rmtree(folder)


async def _any_life(
    folder: Path, choices: int, steps: list[tuple[str, int, int]], end: str
) -> None:
    spec = order(n=choices)
    said: list[list[int]] = [[] for _ in range(choices)]
    seen: list[list[list[int]]] = []
    wholes: set[int] = set()

    async def caller(reader: Reader, whole: bool) -> None:
        mine: list[list[int]] = [[] for _ in range(choices)]
        seen.append(mine)
        with contextlib.suppress(errors.TollbookError):
            if whole:
                answer = await reader.whole()
                for choice in answer.choices:
                    mine[choice.index] = list(choice.token_ids)
            else:
                async for message in reader.stream():
                    mine[message.delta.choice] += message.delta.token_ids
                    # The rule itself: nothing leaves that the disk does not have.
                    assert len(mine[0]) <= recorded(folder)
        reader.leave(End.CALLER_LEFT)

    async with running(folder / "spool") as made:
        readers = [reader_of(made, spec)]
        tasks = [asyncio.create_task(caller(readers[0], False))]
        run = await made.engine.next_run()
        run.events.put_nowait(port.Admitted())
        token = 0
        whole_left = False
        for what, number, count in steps:
            match what:
                case "say":
                    ids = list(range(token, token + count))
                    token += count
                    said[number % choices] += ids
                    made.engine.say(run, number % choices, ids)
                case "join" if ("acct", "r") in made.requests._live:
                    wholes |= {len(readers)} if number else set()
                    readers.append(reader_of(made, spec))
                    tasks.append(asyncio.create_task(caller(readers[-1], bool(number))))
                case "leave" if number < len(readers):
                    # An answer may be made and its caller gone in the same turn.
                    whole_left = whole_left or number in wholes
                    tasks[number].cancel()
                    readers[number].leave(End.CALLER_LEFT)
                case "turn":
                    for _ in range(number):
                        await asyncio.sleep(0)
                case "durable":
                    await made.spool.durable()
                case _:
                    pass
        match end:
            case "finish":
                made.engine.finish(run)
            case "fail":
                run.events.put_nowait(port.EngineFailed("x"))
            case "lose":
                run.events.put_nowait(port.EngineLost("x"))
        await asyncio.gather(*tasks, return_exceptions=True)
        await made.requests.settled()
        event = event_of(made)
        generated, undelivered = output(event)
        assert generated == sum(len(ids) for ids in said)
        for mine in seen:
            for choice in range(choices):
                assert mine[choice] == said[choice][: len(mine[choice])]
        most = sum(max(len(mine[choice]) for mine in seen) for choice in range(choices))
        assert whole_left or generated - undelivered <= most
        if event.outcome in (usage.OUTCOME_COMPLETE, usage.OUTCOME_EMPTY):
            assert undelivered == 0
        found = made.requests.find(CALLER, spec)
        assert isinstance(found, records.Settled)
        delivered = [list(choice.token_ids) for choice in answer_of(found).choices]
        assert sum(len(ids) for ids in delivered) == generated - undelivered
        assert all(ids == said[n][: len(ids)] for n, ids in enumerate(delivered))
        assert len(settled_on_disk(folder / "spool")) == 1
        assert made.engine.runs == 1


def recorded(folder: Path) -> int:
    """Tokens of choice 0 that the files hold."""
    return sum(
        len(record.token_ids)
        for path in sorted((folder / "spool").glob("*.spool"))
        for record, _, _ in spool_codec.scan(memoryview(path.read_bytes()))
        if isinstance(record, records.Progress) and record.choice == 0
    )


async def test_the_disk_at_any_instant_is_a_spool_that_settles_all(tmp_path: Path) -> None:
    """A crash is a copy of the files: taken at every turn, each one recovers without residual."""
    live = tmp_path / "live"
    copies: list[tuple[Path, int]] = []
    async with running(live) as made:
        reader = reader_of(made, order(n=2))
        run = await made.engine.next_run()
        task = asyncio.create_task(read_all(reader))
        given = 0
        for turn in range(30):
            if turn % 3 == 0 and turn < 25:
                made.engine.say(run, turn % 2, [turn, turn + 1])
                given += 2
            if turn == 25:
                made.engine.finish(run)
            await asyncio.sleep(0.001 if turn % 4 == 0 else 0)
            copy = tmp_path / f"copy-{turn}"
            shutil.copytree(live, copy, ignore=shutil.ignore_patterns("lock"))
            copies.append((copy, given))
        await task
    for copy, given in copies:
        spool = Spool.open(copy)
        spool.start()
        recover(spool, Streams(spool.journal, "next/boot", 4), "next/boot", SystemClock())
        await spool.durable()
        assert not spool.journal.open
        (book,) = spool.journal.engines.values()
        assert book.residual() == 0
        assert book.settled_tokens <= given
        assert len(settled_on_disk(copy)) <= 1
        await spool.close()
    assert os.listdir(tmp_path)


# Credit ---------------------------------------------------------------------------------


async def test_a_hold_comes_before_the_engine_and_goes_into_the_event(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        reader = reader_of(made, order("one", max_tokens=3, n=2))
        run = await made.engine.next_run()
        asked = made.credit.asked[0]
        assert (asked.account_id, asked.event_id) == (CALLER.account_id, "one")
        assert (asked.input_tokens, asked.max_output_tokens) == (
            len(run.job.prompt.token_ids),
            6,
        )
        assert made.credit.open == {"hold of one"}
        made.engine.finish(run)
        await read_all(reader)
        await made.requests.settled()
        assert event_of(made, "one").hold_id == "hold of one"
        # The event ends it: nothing is given back here.
        assert (made.credit.open, made.credit.given_back) == (set(), [])


async def test_without_credit_the_engine_sees_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        made.credit.refusal = errors.QuotaExceeded("no credit", reason="NO_CREDIT")
        reader = reader_of(made, order("one"))
        with pytest.raises(errors.QuotaExceeded):
            await read_all(reader)
        assert not made.engine.running
        assert not made.spool.journal.replays


async def test_what_the_engine_refuses_gives_its_hold_back(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        reader = reader_of(made, order("one"))
        refused = await made.engine.next_run()
        refused.events.put_nowait(errors.InvalidArgument("not like this", reason="X"))
        with pytest.raises(errors.InvalidArgument):
            await read_all(reader)
        await made.requests.settled()
        assert (made.credit.open, made.credit.given_back) == (set(), ["hold of one"])
