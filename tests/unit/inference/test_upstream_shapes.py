"""What a server's stream may hold, and how much of it is taken in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import engine as port
from inference.adapters.upstream import shapes, sse
from inference.domain.claims import MAX_CLAIM, Claim
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage


async def cut(data: bytes, sizes: list[int]) -> AsyncIterator[bytes]:
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


@given(st.lists(st.text(max_size=20), max_size=5), st.lists(st.integers(0, 9), max_size=30))
async def test_events_are_the_same_however_the_bytes_are_cut(
    texts: list[str], sizes: list[int]
) -> None:
    sent = [json.dumps(text).encode() for text in texts]
    data = b": hello\n\n" + b"".join(b"data: " + item + b"\r\n\r\n" for item in sent)
    assert [event async for event in sse.events(cut(data, sizes))] == sent


@pytest.mark.parametrize("data", [b"<html>\n", b"data: " + b"x" * (sse.MAX_EVENT_BYTES + 1)])
async def test_what_is_no_stream_ends_it(data: bytes) -> None:
    with pytest.raises(sse.NotAStream):
        [event async for event in sse.events(cut(data, []))]


def chunk(**change: Any) -> bytes:
    choice = {"index": 0, "text": "a", "token_ids": [5], "finish_reason": None}
    return json.dumps({"choices": [choice | change.pop("choice", {})], **change}).encode()


def test_a_piece_is_read() -> None:
    claim = {"prompt_tokens": 4, "completion_tokens": 2, "prompt_tokens_details": None}
    assert shapes.read_piece(chunk(usage=claim)) == shapes.Piece("a", [5], 0, Claim(4, 2, None))
    last = shapes.read_piece(chunk(choice={"finish_reason": "length", "token_ids": None}))
    assert (last.token_ids, last.finish_reason) == (None, usage.FINISH_REASON_LENGTH)
    unheard_of = shapes.read_piece(chunk(choice={"finish_reason": "content_filter"}))
    assert unheard_of.finish_reason == usage.FINISH_REASON_STOP
    absurd = {"prompt_tokens": 10**30, "completion_tokens": 0}
    assert shapes.read_piece(chunk(usage=absurd)).claim == Claim(MAX_CLAIM, 0, None)


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"[]",
        b'{"choices": null}',
        b'{"choices": [{}, {}]}',
        b'{"error": {"message": "out of memory"}}',
        chunk(choice={"text": None}),
        chunk(choice={"token_ids": [-1]}),
        chunk(choice={"token_ids": [True]}),
        chunk(choice={"token_ids": [2**32]}),
        chunk(usage={"prompt_tokens": -1, "completion_tokens": 1}),
        chunk(usage={"prompt_tokens": 1.5, "completion_tokens": 1}),
        chunk(usage=[]),
    ],
)
def test_what_is_no_piece_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(shapes.Garbled):
        shapes.read_piece(data)


def test_the_plain_dialect_asks_for_nothing_that_openai_has_not() -> None:
    job = port.Job(
        "r",
        port.Target("tiny", "tiny", ""),
        port.Prompt([1, 2], "salt"),
        inference.SamplingParams(seed=7, stop=["x"]),
        2,
        9,
        {},
    )
    plain = shapes.body_of(job, "m", 1, shapes.Dialect.PLAIN)
    assert plain == {
        "model": "m",
        "prompt": [1, 2],
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 8,
        "stop": ["x"],
    }
    rich = shapes.body_of(job, "m", 1, shapes.Dialect.RICH)
    assert (rich["return_token_ids"], rich["cache_salt"]) == (True, "salt")


def test_what_the_caller_left_out_is_left_to_the_model_and_each_choice_has_its_seed() -> None:
    sampling = inference.SamplingParams(temperature=0, top_k=3, seed=7)
    job = port.Job("r", port.Target("", "", ""), port.Prompt([1], ""), sampling, 2, 4, {})
    assert [job.numbers(choice) for choice in (0, 1)] == [
        {"temperature": 0, "top_k": 3, "seed": 7},
        {"temperature": 0, "top_k": 3, "seed": 8},
    ]
