"""The conformance kit: what must hold of any engine, whatever runs behind the port.

`inference_engine_probe.py` drives an engine through the situations of docs/metering.md beside
its own counter; a test module gives what it saw as the fixture `seen` and has a class of its
own that inherits these.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tollbook.usage.v1 import usage_pb2 as usage

ROOT = Path(__file__).resolve().parents[2]
END_OF_TEXT_ID = 2


def start_probe(mode: str, home: Path, *server: str) -> subprocess.Popen[str]:
    """A probe of the engine inside or, with a server's address and process id, of that one."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'gen'}"}
    probe = str(Path(__file__).with_name("inference_engine_probe.py"))
    return subprocess.Popen(
        [sys.executable, probe, mode, str(home), *server],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def lines_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    assert process.stdout is not None
    # Libraries print there too.
    return [json.loads(line) for line in process.stdout if line.startswith("{")]


def situations(home: Path, *server: str) -> dict[str, Any]:
    """What the probe saw, by situation."""
    process = start_probe("situations", home, *server)
    found = {line["situation"]: line["result"] for line in lines_of(process)}
    assert process.wait(120) == 0
    return found


class Conformance:
    """Inherited by a class of each engine's own."""

    def test_warm_up_is_counted(self, seen: dict[str, Any]) -> None:
        assert seen["warm_up"] == {"tokens": 4, "residual": 0}

    @pytest.mark.parametrize(
        "situation",
        [
            "length",
            "again",
            "adapter",
            "fresh_prompt",
            "cached_prompt",
            "other_tenant",
            "choices",
            "stop_string",
            "structured",
            "to_the_context",
            "abort_choices",
            "slow_reader",
            "slow_abort",
            "many",
            "preempted",
        ],
    )
    def test_what_is_handed_out_is_what_the_engine_counted(
        self, seen: dict[str, Any], situation: str
    ) -> None:
        assert seen[situation]["output"] > 0
        assert seen[situation]["residual"] == 0
        # An honest engine is not doubted.
        assert not seen[situation].get("disputed")

    def test_greedy_is_repeatable_and_the_adapter_answers_otherwise(
        self, seen: dict[str, Any]
    ) -> None:
        assert seen["length"]["finish"] == [usage.FINISH_REASON_LENGTH]
        assert seen["length"]["output"] == 32
        assert seen["length"]["ids"] == seen["again"]["ids"]
        assert seen["length"]["ids"] != seen["adapter"]["ids"]

    def test_a_cached_prefix_is_reported_in_blocks_to_its_own_tenant_only(
        self,
        seen: dict[str, Any],
    ) -> None:
        (cached,) = seen["cached_prompt"]["cached"]
        assert seen["fresh_prompt"]["cached"] == [0]
        assert cached == seen["cached_prompt"]["prompt"] // 32 * 32 > 0
        assert seen["other_tenant"]["cached"] == [0]

    def test_of_several_choices_the_first_tells_what_was_cached(self, seen: dict[str, Any]) -> None:
        # Its siblings find the blocks that it wrote itself.
        assert seen["choices"]["cached"][0] == 0
        assert seen["choices"]["output"] == 3 * 32
        assert len({tuple(ids) for ids in seen["choices"]["ids"]}) == 3

    def test_a_stop_string_is_billed_through_its_match(self, seen: dict[str, Any]) -> None:
        stopped, whole = seen["stop_string"], seen["length"]
        assert stopped["finish"] == [usage.FINISH_REASON_STOP]
        assert stopped["ids"][0] == whole["ids"][0][: stopped["output"]]
        assert len(stopped["text"][0]) < len(whole["text"][0])

    def test_structured_output_is_ordinary_tokens(self, seen: dict[str, Any]) -> None:
        (text,) = seen["structured"]["text"]
        assert json.loads(text) in ("toll", "bridge", "lane")
        assert seen["structured"]["finish"] == [usage.FINISH_REASON_STOP]

    def test_an_abort_at_every_chunk_hands_out_all_that_was_counted(
        self, seen: dict[str, Any]
    ) -> None:
        assert len(seen["aborts"]) == 20
        for result in seen["aborts"]:
            assert result["residual"] == 0
            assert result["finish"] == [usage.FINISH_REASON_ABORT]
            assert result["ended"]
            assert result["output"] < result["most"]
        choices = seen["abort_choices"]
        assert usage.FINISH_REASON_ABORT in choices["finish"]
        for finish, ids in zip(choices["finish"], choices["ids"], strict=True):
            # On a busy machine one may be whole before its siblings are under way.
            assert finish == usage.FINISH_REASON_ABORT or len(ids) == choices["most"]

    def test_a_slow_reader_loses_nothing(self, seen: dict[str, Any]) -> None:
        assert seen["slow_reader"]["output"] == 400
        # Five outputs were read; the engine had gone on, and all of it is handed out.
        assert seen["slow_abort"]["output"] > 5

    def test_a_crowd_of_long_seeded_prompts_harms_nobody(self, seen: dict[str, Any]) -> None:
        assert seen["seeded_crowd"]["prompt"] > 8_192
        assert seen["seeded_crowd"]["output"] == 24 * 8
        assert seen["seeded_crowd"]["residual"] == 0

    def test_what_is_computed_again_after_a_preemption_counts_once(
        self, seen: dict[str, Any]
    ) -> None:
        assert seen["preempted"]["output"] == 24 * 100
        assert seen["preempted"]["surplus"] == 0
        # It comes back to blocks that it wrote itself: no cache of the caller's.
        assert seen["preempted"]["cached"] == [0] * 24

    def test_the_end_of_text_counts_one(self, seen: dict[str, Any]) -> None:
        assert seen["end_of_text"], "no seed of twelve reached the end of text"
        for result in seen["end_of_text"]:
            assert result["ids"][0][-1] == END_OF_TEXT_ID
            assert result["residual"] == 0

    def test_what_is_refused_generates_nothing_and_harms_nobody(self, seen: dict[str, Any]) -> None:
        assert seen["refusals"] == {
            "over_length": "InvalidArgument",
            "over_length_chat": "InvalidArgument",
            "unknown_id": "InvalidArgument",
            "missing_adapter": "InvalidArgument",
            "unloaded_adapter": "NotFound",
            "bad_sampling": "InvalidArgument",
            "generated": 0,
        }
        assert seen["removed_adapter"] == "NotFound"
        assert seen["many"]["output"] == 120 * 40

    def test_a_dead_core_is_noticed_by_all(self, seen: dict[str, Any]) -> None:
        assert seen["core_killed"] == {"running": ["lost"] * 5, "after": "lost", "left": 0}
