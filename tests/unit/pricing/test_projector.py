"""Runs of a log are rated together where they share a pin, and nothing of them is lost."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pricing.adapters.ledger_client import Run
from pricing.adapters.projector import joined


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
