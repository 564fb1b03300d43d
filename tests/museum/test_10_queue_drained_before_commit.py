"""Exhibit 10: a queue was drained before what it held was committed (litellm#33872, #35531).

Here the log's owner is killed at every step it takes, a thousand times: what the log holds is what
was emitted. The owner is production's own; who dies, and when, the seed decides. The same with
`kill -9` of real processes is tests/chaos/test_ledger_kills.py.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest
from tests.chaos import ledger_simulation as simulation

pytestmark = [pytest.mark.museum, pytest.mark.chaos]

RUNS = 1_000
STEPS = {"take over", "last leaf", "start", "load", "fetch", "streams", "leaves", "write"}


def test_killed_at_each_step_a_thousand_times_the_log_is_what_was_emitted() -> None:
    run = functools.partial(simulation.simulate, kill=0.1)
    with ProcessPoolExecutor(initializer=simulation.quiet) as pool:
        # Each raises when its log is not the reference's.
        traces = list(pool.map(run, range(1_000_000, 1_000_000 + RUNS), chunksize=50))
    died_at = Counter(re.findall(r"dying at (.+)", "\n".join(map("\n".join, traces))))
    assert died_at.total() >= RUNS
    assert died_at.keys() >= STEPS, f"nobody died at {STEPS - died_at.keys()}"
