"""Runs of a log are rated together where they share a pin, and nothing of them is lost; and the
compiled loops are waited for where there is enough to do for them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.adapters import projector
from pricing.adapters.ledger_client import Run
from pricing.adapters.projector import joined
from tollbook.ledger.v1 import ledger_pb2


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=12), st.integers(0, 9))
def test_joined_runs_are_the_same_leaves_at_the_same_places(
    parts: list[tuple[int, int]], first: int
) -> None:
    runs: list[Run] = []
    at = first
    for pin, count in parts:
        leaves = [b"%d" % (at + index) for index in range(count)]
        runs.append(Run("usage-0", at, leaves, pin, {}))
        at += count
    found = list(joined(runs))
    assert [raw for run in found for raw in run.leaves] == [
        raw for run in runs for raw in run.leaves
    ]
    for run in found:
        assert run.leaves[0] == b"%d" % run.first_position
    assert all(one.end_position == two.first_position for one, two in pairwise(found))
    # Two that follow each other differ in their pin, and each leaf keeps its own.
    assert all(one.pin != two.pin for one, two in pairwise(found))
    pins = [run.pin for run in runs for _ in run.leaves]
    assert [run.pin for run in found for _ in run.leaves] == pins


async def test_the_loops_are_compiled_for_a_backlog_alone() -> None:
    nothing: Any = None
    made = projector.Projector(nothing, nothing, nothing, nothing, lambda: None)
    made._waiting["usage-0"] = 400
    assert not made._is_behind()
    made._waiting["usage-1"] = 600
    assert made._is_behind()


async def test_a_projector_that_is_behind_finds_many_small_runs_at_once() -> None:
    class Ledger:
        async def follow(self, name: str, first: int) -> AsyncIterator[Run]:
            at = first
            while True:
                yield Run(name, at, [b""] * 10, 1, {})
                at += 10

    nothing: Any = None
    made = projector.Projector(nothing, nothing, cast(Any, Ledger()), nothing, lambda: None)
    made._queues["usage-0"] = deque()
    made._space["usage-0"] = asyncio.Event()
    following = asyncio.ensure_future(made._follow("usage-0", 0))
    try:
        # It reads until the queue is full by leaves, not by runs, and no further.
        await made._arrived.wait()
        assert made._waiting["usage-0"] == projector._QUEUED_LEAVES
        runs = [made._take("usage-0") for _ in range(len(made._queues["usage-0"]))]
        assert made._waiting["usage-0"] == 0
        (whole,) = joined(runs)
        assert len(whole.leaves) == projector._QUEUED_LEAVES
        # And goes on when there is room.
        made._arrived.clear()
        await made._arrived.wait()
        assert made._queues["usage-0"][0].first_position == whole.end_position
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_logs_that_a_worker_makes_are_followed_within_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not a moment of those at which it looks for more partitions."""
    monkeypatch.setattr(projector, "_DISCOVER_MS", 10**9)
    monkeypatch.setattr(projector, "_DISCOVER_SOON_MS", 1)
    answers = iter((["control"], ["control"], ["control", "usage-0"], ["usage-0", "usage-1"]))
    followed: set[str] = set()
    all_are = asyncio.Event()

    class Ledger:
        stub: Any = None

        async def ListLogs(self, request: Any, wait_for_ready: bool) -> Any:  # noqa: N802
            logs = [ledger_pb2.LogState(log=name) for name in next(answers)]
            return ledger_pb2.ListLogsResponse(logs=logs)

        async def follow(self, name: str, first: int) -> AsyncIterator[Run]:
            followed.add(name)
            if len(followed) == 3:
                all_are.set()
            await asyncio.Event().wait()
            yield Run(name, first, [], 1, {})

    ledger: Any = Ledger()
    ledger.stub = ledger
    nothing: Any = None
    made = projector.Projector(nothing, nothing, ledger, nothing, lambda: None)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(made._discover({}, tasks))
        await all_are.wait()
        looking.cancel()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
    assert followed == {"control", "usage-0", "usage-1"}
