"""Batches: what a file may hold, what a crash leaves, and that each line runs once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.inference.scripted import CALLER, Bench, Running, bench

from inference import engine as port
from inference.adapters import batch_store
from inference.adapters.batch_lines import Lines
from inference.adapters.batch_results import Results
from inference.adapters.batch_store import BatchStore, BatchStoreUnusable, File
from inference.adapters.openai_bodies import Bodies
from inference.app.batch_runner import BatchRunner
from inference.app.order import Caller
from inference.app.recovery import settle_orphan
from inference.domain import batches
from inference.domain.batches import Batch, Problem
from inference.domain.event import BATCH_TIER
from inference.domain.records import Settled
from kernel import errors
from kernel.clock import SystemClock
from tollbook.usage.v1 import usage_pb2 as usage

ENDPOINT = "/v1/completions"
WAIT_S = 60


def line_of(custom_id: Any, **changes: Any) -> bytes:
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 5}
    line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body, **changes}
    return json.dumps(line).encode()


# Lines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"not json", "invalid_json_line"),
        (b"[" * 100_000, "invalid_json_line"),
        (b"[1]", "invalid_json_line"),
        (b'{"a": "\xff"}', "invalid_json_line"),
        (line_of(""), "invalid_custom_id"),
        (line_of(7), "invalid_custom_id"),
        (line_of("x" * 513), "invalid_custom_id"),
        (line_of("a", method="GET"), "invalid_method"),
        (line_of("a", url="/v1/chat/completions"), "mismatched_url"),
        (line_of("a", body=None), "invalid_body"),
        (line_of("a", body={"stream": True}), "invalid_body"),
        (b" " * (batches.MAX_LINE_BYTES + 1), "line_too_long"),
    ],
)
def test_a_line_that_is_none_is_told_what_is_wrong(raw: bytes, code: str) -> None:
    found = batches.read_line(3, raw, ENDPOINT)
    assert isinstance(found, Problem)
    assert (found.line, found.code) == (3, code)


def test_a_file_is_refused_whole_with_each_problem_up_to_a_bound() -> None:
    good = [line_of("a"), b"", line_of("b"), b"  "]
    assert batches.check(good, ENDPOINT) == (2, [])
    twice = [line_of("a"), line_of("b"), line_of("a")]
    total, problems = batches.check(twice, ENDPOINT)
    assert (total, [(one.line, one.code) for one in problems]) == (3, [(3, "duplicate_custom_id")])
    assert [one.code for one in batches.check([b"", b" "], ENDPOINT)[1]] == ["empty_file"]
    assert len(batches.check([b"x"] * 100, ENDPOINT)[1]) == batches.MAX_ERRORS
    many = (line_of(str(number)) for number in range(batches.MAX_LINES + 1))
    assert [one.code for one in batches.check(many, ENDPOINT)[1]] == ["too_many_lines"]


@given(ids=st.lists(st.text(min_size=1, max_size=40), unique=True, max_size=20))
def test_each_line_and_attempt_has_an_id_of_its_own_that_the_contract_takes(
    ids: list[str],
) -> None:
    made = [
        batches.request_id_of("batch-0", custom, attempt) for custom in ids for attempt in (1, 2, 9)
    ]
    assert len(set(made)) == len(made)
    assert all(len(one) <= 128 and one.isascii() for one in made)
    assert made == [
        batches.request_id_of("batch-0", custom, attempt) for custom in ids for attempt in (1, 2, 9)
    ]


# The disk -------------------------------------------------------------------------------


def answer(custom_id: str, tokens: int = 2) -> dict[str, Any]:
    told = {
        "prompt_tokens": 3,
        "completion_tokens": tokens,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    return {"custom_id": custom_id, "response": {"body": {"usage": told}}}


@settings(max_examples=30)
@given(ids=st.lists(st.text(max_size=9), unique=True, min_size=1, max_size=8), data=st.data())
def test_results_cut_anywhere_are_whole_lines_and_go_on(ids: list[str], data: Any) -> None:
    """Whatever of the last group a crash left: what is known is a prefix, and it can grow."""

    async def write(folder: Path, names: list[str]) -> Results:
        results = Results(folder / "a", folder / "b")
        await asyncio.gather(*(results.add(True, answer(name)) for name in names))
        results.close()
        return results

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asyncio.run(write(folder, ids))
        whole = (folder / "a").read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        (folder / "a").write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", b"\0\0\n{"])))
        left = Results(folder / "a", folder / "b")
        left.close()
        known = [one for one in ids if one in left.done]
        assert known == ids[: whole[:cut].count(b"\n")]
        assert left.sums.completed == len(known)
        again = asyncio.run(write(folder, [one for one in ids if one not in left.done]))
        assert again.done == set(ids)
        assert again.sums.output_tokens == 2 * len(ids)
        assert (folder / "a").read_bytes() == whole


async def test_a_disk_that_takes_half_a_line_leaves_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "a", tmp_path / "b")
    await results.add(True, answer("good"))

    def full(_number: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="disk full"):
            await results.add(True, answer("lost"))
    await results.add(False, answer("bad"))
    results.close()
    assert results.done == {"good", "bad"}
    assert [json.loads(x)["custom_id"] for x in (tmp_path / "a").open()] == ["good"]


async def test_an_answer_without_usage_fails_its_line_and_hangs_nobody(tmp_path: Path) -> None:
    results = Results(tmp_path / "a", tmp_path / "b")
    odd = {**answer("odd"), "response": {"body": {}}}
    with pytest.raises(KeyError, match="usage"):
        await asyncio.wait_for(results.add(True, odd), 30)
    await results.add(False, answer("bad"))
    results.close()


def file_of(file_id: str, account: str = "acct", purpose: str = "batch") -> File:
    return File(file_id, account, "in.jsonl", purpose, 3, 1)


def batch_of(batch_id: str, status: str = batches.IN_PROGRESS, **changes: Any) -> Batch:
    values: dict[str, Any] = {
        "account_id": "acct",
        "key_digest": "00" * 32,
        "endpoint": ENDPOINT,
        "input_file_id": "in",
        "output_file_id": f"{batch_id}-out",
        "error_file_id": f"{batch_id}-err",
        "metadata": {"a": "b"},
        "expires_at": 2**40,
        "status": status,
        "at": {batches.VALIDATING: 5},
    }
    return Batch(id=batch_id, **{**values, **changes})


def test_what_is_kept_is_there_again_and_half_uploads_are_not(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    with source.open("rb") as opened:
        store.take_in(opened, file_of("in"))
    batch = batch_of("b1", problems=[Problem(1, "code", "message")])
    store.save(batch, batch.to_json())
    store.path_of("half-upload").write_bytes(b"x")
    store.path_of("b1-out").write_bytes(b"y")
    with pytest.raises(BatchStoreUnusable, match="another process"):
        BatchStore(tmp_path)
    store.close()
    again = BatchStore(tmp_path)
    assert again.files == {"in": file_of("in")}
    assert again.batches == {"b1": batch}
    assert list(again.lines("in")) == [b"abc"]
    # A running batch's results are nobody's upload.
    assert again.path_of("b1-out").exists()
    assert not again.path_of("half-upload").exists()
    again.close()
    (tmp_path / "batches" / "b2.json").write_text('{"id": 1}')
    with pytest.raises(BatchStoreUnusable, match=r"b2\.json"):
        BatchStore(tmp_path)


def test_nobody_has_anothers_files_or_batches_and_each_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_store, "MAX_FILES", 2)
    monkeypatch.setattr(batch_store, "MAX_OPEN_BATCHES", 2)
    monkeypatch.setattr(batch_store, "MAX_KEPT_BATCHES", 3)
    store = BatchStore(tmp_path)
    for file_id in ("in", "in2"):
        store.room_for_file("acct")
        store.publish(file_of(file_id))
    with pytest.raises(errors.FailedPrecondition, match="delete some"):
        store.room_for_file("acct")
    store.room_for_file("other")
    batch = batch_of("b0")
    store.save(batch, batch.to_json())
    for ask in (
        lambda: store.file("other", "in"),
        lambda: store.file("acct", "in3"),
        lambda: store.batch("other", "b0"),
    ):
        with pytest.raises(errors.NotFound):
            ask()
    with pytest.raises(errors.FailedPrecondition, match="cancel"):
        store.forget_file(store.file("acct", "in"))
    batch.status = batches.COMPLETED
    with (
        store.reading("in"),
        pytest.raises(errors.FailedPrecondition, match="batch under way reads it"),
    ):
        store.forget_file(store.file("acct", "in"))
    file = store.file("acct", "in")
    store.forget_file(file)
    with pytest.raises(errors.NotFound):
        store.file("acct", "in")
    store.erase(file)
    for number in range(1, 6):
        store.room_for_batch("acct")
        made = batch_of(f"b{number}", batches.COMPLETED)
        store.save(made, made.to_json())
    assert [one.id for one in store.batches_of("acct")] == ["b5", "b4", "b3"]
    for batch_id in ("b6", "b7"):
        open_one = batch_of(batch_id)
        store.save(open_one, open_one.to_json())
    with pytest.raises(errors.FailedPrecondition, match="under way"):
        store.room_for_batch("acct")
    store.close()


# Running --------------------------------------------------------------------------------


async def one_id(text: str) -> list[int]:
    return [1]


class OneKey:
    """Every digest is CALLER's, until `revoked`."""

    revoked = False

    async def resolve_digest(self, digest: bytes) -> Caller:
        if self.revoked:
            raise errors.Unauthenticated("revoked", reason="UNKNOWN_KEY")
        return CALLER


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


class House:
    """A batch store and its runner on a scripted engine; `drive` plays the engine."""

    def __init__(self, folder: Path, places: int = 4) -> None:
        self.resumed = (folder / "spool").exists()
        self.made: Bench = bench(folder / "spool")
        self.store = BatchStore(folder / "batches")
        self.keys = OneKey()
        lines = Lines(Bodies(one_id, None), SystemClock())
        keys: Any = self.keys
        self.runner = BatchRunner(
            self.store, self.made.requests, keys, SystemClock(), places, lines.read, lines.tell
        )

    def submit(self, lines: list[bytes], **changes: Any) -> Batch:
        file = file_of("in")
        self.store.path_of("in").write_bytes(b"\n".join(lines))
        self.store.publish(file)
        batch = batch_of("b1", batches.VALIDATING, **changes)
        self.store.save(batch, batch.to_json())
        self.runner.wake("acct")
        return batch

    async def ended(self, batch: Batch) -> dict[str, Any]:
        await until(lambda: batch.status not in batches.UNDER_WAY)
        return self.runner.told(batch)

    def results(self, batch: Batch) -> tuple[list[Any], list[Any]]:
        answers, failures = (
            [json.loads(line) for line in self.store.lines(name)]
            if name in self.store.files
            else []
            for name in (batch.output_file_id, batch.error_file_id)
        )
        return answers, failures

    def events(self) -> dict[str, usage.UsageEvent]:
        """Every settled event by its id."""
        spool = self.made.spool
        found = {}
        for replay in spool.journal.replays.values():
            record = spool.read(replay.ref)
            assert isinstance(record, Settled)
            found[record.request_id] = usage.UsageEvent.FromString(record.event)
        return found

    def answer(self, running: Running) -> None:
        running.events.put_nowait(port.Admitted())
        self.made.engine.say(running, 0, [7, 8])
        self.made.engine.finish(running)

    async def stop(self) -> None:
        await self.made.requests.drain(0)
        await self.runner.stop()
        # An engine of a test that a second process goes on with begins to count anew.
        assert self.resumed or self.made.books.residual() == 0
        await self.made.spool.close()


@contextlib.asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    made = House(folder)
    served: set[str] = set()

    async def drive() -> None:
        while True:
            await made.made.engine.arrived.wait()
            made.made.engine.arrived.clear()
            for name, running in list(made.made.engine.running.items()):
                if name not in served:
                    served.add(name)
                    made.answer(running)

    driving = asyncio.create_task(drive())
    try:
        yield made
    finally:
        await made.stop()
        driving.cancel()


def billed(events: dict[str, usage.UsageEvent]) -> dict[str, int]:
    """What a card charges that says nothing of outcomes: failures by what was delivered."""
    ours = (usage.OUTCOME_ENGINE_LOST, usage.OUTCOME_ERROR_MID_STREAM)
    return {
        name: sum(
            leaf.amount - (leaf.undelivered_amount if event.outcome in ours else 0)
            for leaf in event.quantities
        )
        for name, event in events.items()
        if event.outcome != usage.OUTCOME_ERROR_BEFORE_FIRST_TOKEN
    }


async def test_each_line_is_answered_once_in_the_tier_of_batches(tmp_path: Path) -> None:
    async with house(tmp_path) as made:
        lines = [line_of(f"line-{number}") for number in range(40)]
        # Not the batch's fault, but this line's.
        lines[7] = line_of("line-7", body={"model": "none", "prompt": [1]})
        lines[8] = line_of("line-8", body={"model": "tiny", "prompt": [1], "tools": []})
        batch = made.submit(lines)
        told = await made.ended(batch)
        assert told["status"] == "completed"
        assert told["request_counts"] == {"total": 40, "completed": 38, "failed": 2}
        assert told["usage"]["output_tokens"] == 2 * 38
        assert (told["output_file_id"], told["error_file_id"]) == ("b1-out", "b1-err")
        answers, failures = made.results(batch)
        assert len({one["custom_id"] for one in answers}) == 38
        assert {one["response"]["status_code"] for one in answers} == {200}
        assert {one["custom_id"]: one["response"]["status_code"] for one in failures} == {
            "line-7": 404,
            "line-8": 400,
        }
        events = made.events()
        assert sorted(events) == sorted(one["response"]["body"]["id"] for one in answers)
        assert {event.service_tier for event in events.values()} == {BATCH_TIER}
        assert {asked.service_tier for asked in made.made.credit.asked} == {BATCH_TIER}
        assert made.made.engine.runs == 38


async def test_a_bad_file_fails_its_batch_and_runs_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as made:
        told = await made.ended(made.submit([line_of("a"), b"no"]))
        assert told["status"] == "failed"
        assert [one["line"] for one in told["errors"]["data"]] == [2]
        assert made.made.engine.runs == 0


async def test_a_cancelled_batch_keeps_what_it_has_and_begins_no_more(tmp_path: Path) -> None:
    made = House(tmp_path, places=2)
    batch = made.submit([line_of(str(number)) for number in range(10)])
    await until(lambda: made.made.engine.runs == 2)
    await made.runner.cancel(batch)
    assert made.runner.told(batch)["status"] == "cancelling"
    for running in made.made.engine.running.values():
        made.answer(running)
    told = await made.ended(batch)
    assert told["status"] == "cancelled"
    assert told["request_counts"] == {"total": 10, "completed": 2, "failed": 0}
    assert len(made.results(batch)[0]) == len(made.events()) == 2
    await made.stop()


async def test_what_is_left_when_the_window_ends_is_said_to_be_late(tmp_path: Path) -> None:
    async with house(tmp_path) as made:
        batch = made.submit([line_of(str(number)) for number in range(3)], expires_at=1)
        assert (await made.ended(batch))["status"] == "expired"
        failures = made.results(batch)[1]
        assert [one["error"]["code"] for one in failures] == ["batch_expired"] * 3
        assert made.made.engine.runs == 0


async def test_a_revoked_key_ends_its_batch(tmp_path: Path) -> None:
    async with house(tmp_path) as made:
        made.keys.revoked = True
        told = await made.ended(made.submit([line_of("a")]))
        assert told["status"] == "failed"
        assert told["errors"]["data"][0]["code"] == "invalid_api_key"
        assert made.made.engine.runs == 0


async def test_no_credit_is_the_lines_error_only_when_the_batch_holds_none_itself(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as made:
        made.made.credit.refusal = errors.QuotaExceeded("nothing left", reason="NO_CREDIT")
        batch = made.submit([line_of(str(number)) for number in range(3)])
        assert (await made.ended(batch))["request_counts"]["failed"] == 3
        statuses = {one["response"]["status_code"] for one in made.results(batch)[1]}
        assert statuses == {429}


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_a_line_that_died_with_the_process_is_run_again_and_paid_once(
    tmp_path: Path, how: str
) -> None:
    """Two of ten are answered; two are in the engine, with tokens; then the end comes."""
    made = House(tmp_path, places=2)
    made.submit([line_of(str(number)) for number in range(10)])

    async def arrived(count: int) -> list[Running]:
        await until(lambda: made.made.engine.runs == count)
        return list(made.made.engine.running.values())

    for running in await arrived(2):
        made.answer(running)
    for running in (await arrived(4))[2:]:
        running.events.put_nowait(port.Admitted())
        made.made.engine.say(running, 0, [5])
    await until(lambda: made.made.requests.in_flight()[1] == 2)
    await made.made.spool.durable()
    if how == "killed":
        # What is on the disk at this instant is all that there is.
        shutil.copytree(tmp_path, tmp_path.with_name("crashed"))
        folder = tmp_path.with_name("crashed")
    else:
        folder = tmp_path
    engine = made.made.engine

    async def finish_when_aborted(running: Running) -> None:
        await running.aborted.wait()
        engine.finish(running)

    ends = [asyncio.create_task(finish_when_aborted(running)) for running in (await arrived(4))[2:]]
    await made.stop()
    await asyncio.gather(*ends)

    async with house(folder) as again:
        if how == "killed":
            for orphan in list(again.made.spool.journal.open.values()):
                settle_orphan(again.made.spool, again.made.streams, orphan, SystemClock())
            await again.made.spool.durable()
        again.runner.resume()
        resumed = again.store.batches["b1"]
        told = await again.ended(resumed)
        assert told["request_counts"] == {"total": 10, "completed": 10, "failed": 0}
        answers, _ = again.results(resumed)
        assert sorted(one["custom_id"] for one in answers) == [str(number) for number in range(10)]
        ids = {one["response"]["body"]["id"] for one in answers}
        paid = {name: tokens for name, tokens in billed(again.events()).items() if tokens}
        assert paid == dict.fromkeys(ids, 3 + 2)
        second = [name for name in ids if name.endswith("/2")]
        assert len(second) == 2
