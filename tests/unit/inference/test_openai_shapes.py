"""OpenAI's shapes: what is read is what was sent, and what is told is what was counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.adapters import openai_answers as answers
from inference.adapters import openai_shapes as shapes
from inference.domain.counting import Tally
from inference.domain.event import body_digest, summary_of
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

SAYS_HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> shapes.ChatRequest:
    body = {"model": "tiny", "messages": SAYS_HI, **fields}
    return shapes.parse(shapes.ChatRequest, json.dumps(body).encode())


def summary(prompt: int, cached: int, outputs: list[int]) -> inference.UsageSummary:
    tally = Tally(prompt, len(outputs))
    tally.note_cached(0, cached)
    for choice, amount in enumerate(outputs):
        tally.add(choice, [7] * amount)
    event = usage.UsageEvent(event_id="r-1", account_id="a", quantities=tally.quantities())
    return summary_of(event, "usage-0")


@given(st.integers(0, 5_000), st.integers(0, 5_000), st.lists(st.integers(0, 300), min_size=1))
def test_the_usage_object_sums_the_events_leaves(
    prompt: int, cached: int, outputs: list[int]
) -> None:
    told = answers.usage_of(summary(prompt, min(prompt, cached), outputs))
    assert told["prompt_tokens"] == prompt
    assert told["prompt_tokens_details"]["cached_tokens"] == min(prompt, cached)
    assert told["completion_tokens"] == sum(outputs)
    assert told["total_tokens"] == prompt + sum(outputs)


def test_reasoning_is_a_part_of_the_output_and_not_beside_it() -> None:
    made = inference.UsageSummary(output_tokens=482)
    for kind, amount in ((usage.TOKEN_KIND_REASONING, 448), (usage.TOKEN_KIND_PLAIN, 34)):
        made.quantities.add(
            unit=usage.UNIT_TOKEN, direction=usage.DIRECTION_OUT, token_kind=kind, amount=amount
        )
    told = answers.usage_of(made)
    assert told["completion_tokens"] == 482
    assert told["completion_tokens_details"]["reasoning_tokens"] == 448


def test_streaming_is_no_part_of_the_body() -> None:
    """So a retry that streams attaches to the request that did not."""
    plain = chat(max_tokens=4).spec("r-1")
    streamed = chat(max_tokens=4, stream=True, stream_options={"include_usage": True}).spec("r-1")
    assert body_digest(plain) == body_digest(streamed)
    assert body_digest(plain) != body_digest(chat(max_tokens=5).spec("r-1"))


def test_what_is_sent_is_what_is_asked_for() -> None:
    spec = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
        ],
        max_tokens=9,
        max_completion_tokens=5,
        stop="end",
        temperature=0,
        seed=3,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}},
    ).spec("r-1")
    assert [(item.role, item.content) for item in spec.chat.messages] == [
        ("system", "Be brief."),
        ("user", "ab"),
    ]
    assert spec.sampling == inference.SamplingParams(
        max_tokens=5, temperature=0, seed=3, stop=["end"], json_schema='{"a": 1}'
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": []}, "functions"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0.type",
        ),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": "hi"}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"service_tier": "priority"}, "service_tier"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        chat(**fields).spec("")
    status, body, headers = answers.error_of(caught.value, None)
    assert (status, body["error"]["param"]) == (400, param)
    assert headers["x-should-retry"] == "false"


def refused(kind: type[shapes.Read], body: dict[str, Any]) -> str:
    """What a caller of this body is told."""
    with pytest.raises(errors.InvalidArgument) as caught:
        shapes.parse(kind, json.dumps(body).encode())
    told: str = answers.error_of(caught.value, None)[1]["error"]["message"]
    return told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"stop": 5}, "stop: Input should be a text or a list of texts"),
        ({"stop": ["a", 5]}, "stop.1: Input should be a valid string"),
        (
            {"messages": [{"role": "user", "content": {}}]},
            "messages.0.content: Input should be a text or a list of parts",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "x": 1}]}]},
            "messages.0.content.0.x is not supported here: leave it out",
        ),
        ({"tool_choice": "x"}, "tool_choice: Input should be 'none', 'auto' or 'required'"),
        (
            {"tool_choice": 5},
            "tool_choice: Input should be 'none', 'auto', 'required' or an object that names a"
            " function",
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": 5}}},
            "tool_choice.function.name: Input should be a valid string",
        ),
        # Names that a form, or a kind of pydantic's, could have.
        ({"str": 1}, "str is not supported here: leave it out"),
        ({"<text>": 1}, "<text> is not supported here: leave it out"),
        ({"a[b]": 1}, "a[b] is not supported here: leave it out"),
    ],
)
def test_what_is_wrong_is_told_of_the_form_that_was_sent(fields: dict[str, Any], told: str) -> None:
    assert refused(shapes.ChatRequest, {"model": "t", "messages": SAYS_HI, **fields}) == told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            5,
            "input: Input should be a text, a list of texts, a list of token ids or a list of such",
        ),
        ([1, "a"], "input.1: Input should be a valid integer"),
        (["a", 1], "input.1: Input should be a valid string"),
        ([[1], ["a"]], "input.1.0: Input should be a valid integer"),
        ([[1], 2], "input.1: Input should be a valid array"),
        ([1.5], "input.0: Input should be a valid integer"),
        ([None], "input.0: Input should be a valid string"),
    ],
)
def test_a_list_is_of_what_its_first_item_is(given: object, told: str) -> None:
    assert refused(shapes.EmbeddingRequest, {"model": "t", "input": given}).startswith(told)


@pytest.mark.parametrize("given", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_every_form_is_read_as_it_was_sent(given: object) -> None:
    read = shapes.parse(
        shapes.EmbeddingRequest, json.dumps({"model": "t", "input": given}).encode()
    )
    assert read.input == given


def test_a_settled_failure_is_never_sent_again_by_itself() -> None:
    lost = errors.Unavailable("lost", reason="ENGINE_LOST", retry_after_ms=5_000)
    status, body, headers = answers.error_of(lost, summary(3, 0, [4]))
    assert (status, headers["x-should-retry"]) == (503, "false")
    assert body["error"]["usage"]["completion_tokens"] == 4
    status, body, headers = answers.error_of(lost, None)
    assert (status, headers["x-should-retry"]) == (503, "true")
    assert (headers["retry-after-ms"], headers["retry-after"]) == ("5000", "5")
    assert "usage" not in body["error"]


def test_no_credit_is_openais_insufficient_quota_and_not_tried_again() -> None:
    error = errors.QuotaExceeded("no credit", reason="NO_CREDIT")
    status, body, headers = answers.error_of(error, None)
    assert (status, body["error"]["code"]) == (429, "insufficient_quota")
    assert headers["x-should-retry"] == "false"
