"""A body as the gate takes it: the same from the door and from a batch's line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference.adapters.batch_lines import Lines
from inference.adapters.openai_bodies import Bodies
from kernel import errors
from kernel.clock import SystemClock


async def letters(text: str) -> list[int]:
    return [len(text)]


BODIES = Bodies(letters, None)
TOOL = {"type": "function", "function": {"name": "look"}}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny", **fields}).encode()


async def test_a_text_is_encoded_and_ids_are_taken_as_they_are() -> None:
    for prompt, ids in (("abc", [3]), ([7, 8], [7, 8])):
        asked = await BODIES.completion(body(prompt=prompt, max_tokens=4), "r-1")
        assert (asked.spec.request_id, asked.spec.model) == ("r-1", "tiny")
        assert (list(asked.spec.tokens.token_ids), asked.bound) == (ids, None)


async def test_a_chat_comes_with_what_its_tools_bind() -> None:
    sent = body(messages=[{"role": "user", "content": "hi"}], tools=[TOOL], tool_choice="required")
    asked = await BODIES.chat(sent, "r-1")
    assert asked.bound is not None
    assert asked.spec.sampling.json_schema == asked.bound.schema
    lines = Lines(BODIES, SystemClock())
    assert await lines.read("/v1/chat/completions", sent, "r-1") == asked.spec


async def test_what_the_contract_does_not_take_is_refused_in_both() -> None:
    prompt = body(prompt=[1], temperature=-1)
    messages = body(messages=[{"role": "user", "content": "hi"}], temperature=-1)
    for reading in (BODIES.completion(prompt, "r"), BODIES.chat(messages, "r")):
        with pytest.raises(errors.InvalidArgument) as refused:
            await reading
        assert refused.value.violations[0].field == "spec.sampling.temperature"
