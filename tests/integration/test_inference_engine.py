"""Each way a request can go, on the real engine, beside the engine's own counter."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.integration.engine_conformance import (
    Conformance,
    lines_of,
    situations,
    start_probe,
)

from inference import tinymodel

pytestmark = [pytest.mark.integration, pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tinymodel.make(directory)
    return directory


@pytest.fixture(scope="module")
def seen(home: Path) -> dict[str, Any]:
    return situations(home)


class TestTheEngineInside(Conformance):
    """vLLM in this process."""

    def test_the_engine_did_preempt(self, seen: dict[str, Any]) -> None:
        assert seen["preempted"]["preemptions"] > 0

    def test_a_prompt_with_logprobs_is_computed_whole(self, seen: dict[str, Any]) -> None:
        asked, cached = seen["prompt_logprobs"], seen["cached_prompt"]
        assert asked["prompt"] == cached["prompt"]
        assert cached["cached"] > [0]
        assert asked["cached"] == [0]
        assert asked["output"] > 0
        assert asked["residual"] == 0


def check_drafting(seen: dict[str, Any]) -> None:
    """Accepted guesses are output, each once; rejected ones are in no count at all."""
    assert seen["residual"] == 0
    assert seen["exact"] == [*range(31, 37), 2 * 101]
    assert 20 <= seen["left"] < 3_500
    assert 0 < seen["accepted"] < seen["drafted"]
    assert seen["accepted"] < seen["output"]


def _gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.chaos
def test_guesses_ahead_count_when_they_are_right_and_the_core_dies_with_its_parent(
    home: Path,
) -> None:
    process = start_probe("serve", home)
    assert process.stdout is not None
    drafting, said = (
        json.loads(line)
        for line in itertools.islice((x for x in process.stdout if x.startswith("{")), 2)
    )
    (core,) = said["core"]
    assert psutil.pid_exists(core)
    process.kill()
    process.wait(60)
    check_drafting(drafting["drafting"])
    assert _gone(core, 60)


def test_a_stop_leaves_no_process_also_when_the_core_does_not_answer(home: Path) -> None:
    process = start_probe("stop", home)
    assert lines_of(process) == [{"left": 0}]
    assert process.wait(120) == 0
