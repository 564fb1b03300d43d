"""Laws of the readers: leaves sum to the total, none is below 0, reading is one and the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.pricing.readers.dialect_objects import (
    WITHOUT_CACHE_WRITES,
    WRITERS,
    Request,
    as_own,
    vector,
)

from pricing.domain.readers import dialects
from pricing.domain.readers.reading import UsageReadError, UsageReading

COUNTS = st.integers(0, 5_000_000)
REQUESTS = st.builds(Request, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)

NAMES = {
    "openai_chat": ("prompt_tokens", "completion_tokens"),
    "openai_responses": ("input_tokens", "output_tokens"),
    "vllm": ("prompt_tokens", "completion_tokens"),
}


def tokens(read: UsageReading, direction: str) -> int:
    return sum(
        leaf.amount
        for leaf in read.leaves
        if leaf.key.unit == "token" and leaf.key.direction == direction
    )


@given(REQUESTS)
def test_one_request_in_every_dialect_gives_one_leaf_vector(request: Request) -> None:
    expected = {
        name: amount
        for name, amount in (
            ("in", request.plain_in),
            ("in.read", request.cache_read),
            ("in.write", request.cache_write),
            ("out", request.plain_out),
            ("out.reasoning", request.reasoning),
        )
        if amount
    }
    for name, write in WRITERS.items():
        if request.cache_write and name in WITHOUT_CACHE_WRITES:
            continue
        read = dialects.named(name).read(write(request))
        assert vector(read) == expected, name
        assert tokens(read, "in") == request.total_in
        assert tokens(read, "out") == request.total_out


@given(REQUESTS, st.sampled_from(sorted(WRITERS)))
def test_read_again_in_our_own_form_it_is_the_same(request: Request, name: str) -> None:
    if name in WITHOUT_CACHE_WRITES:
        request = Request(
            request.plain_in, request.cache_read, 0, request.plain_out, request.reasoning
        )
    usage = WRITERS[name](request)
    read = dialects.named(name).read(usage)
    assert dialects.named(name).read(usage) == read
    again = dialects.named("tollbook").read(as_own(read))
    assert again.leaves == read.leaves


SMALL = st.one_of(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(-2, 9))
RUBBISH = st.one_of(st.booleans(), st.floats(), st.text(max_size=3), st.lists(SMALL))
COUNT = st.integers(0, 19).flatmap(
    lambda choice: RUBBISH if choice == 0 else st.none() if choice == 1 else SMALL
)
TOTAL = st.integers(0, 30)


def objects_of(details: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of the fields, small counts that often clash, and now and then rubbish."""
    totals: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for name, inner in details.items():
        if isinstance(inner, dict):
            fields[name] = st.one_of(objects_of(inner), st.none())
        elif inner == "list":
            entry = st.fixed_dictionaries(
                {"modality": st.sampled_from(["TEXT", "IMAGE", "AUDIO"]), "tokenCount": SMALL}
            )
            fields[name] = st.lists(entry, max_size=3)
        elif inner == "total":
            totals[name] = TOTAL
        else:
            fields[name] = COUNT
    return st.fixed_dictionaries(totals, optional=fields)


SHAPES: dict[str, dict[str, Any]] = {
    "openai_chat": {
        "prompt_tokens": "total",
        "completion_tokens": "total",
        "prompt_tokens_details": {
            "cached_tokens": 0,
            "cache_write_tokens": 0,
            "audio_tokens": 0,
            "image_tokens": 0,
            "text_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "text_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    },
    "openai_responses": {
        "input_tokens": "total",
        "output_tokens": "total",
        "input_tokens_details": {
            "cached_tokens": 0,
            "cache_write_tokens": 0,
            "audio_tokens": 0,
            "image_tokens": 0,
            "text_tokens": 0,
            "cached_tokens_details": {"audio_tokens": 0, "image_tokens": 0, "text_tokens": 0},
            "cache_write_tokens_details": {"ttl_30m_tokens": 0, "ttl_12h_tokens": 0},
        },
        "output_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
    },
    "vllm": {
        "prompt_tokens": "total",
        "completion_tokens": "total",
        "prompt_tokens_details": {
            "cached_tokens": 0,
            "created_cache_tokens": 0,
            "multimodal_tokens": {"image": 0, "audio": 0},
        },
        "completion_tokens_details": {"reasoning_tokens": 0},
    },
    "anthropic": {
        "input_tokens": "total",
        "output_tokens": "total",
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens_details": {"thinking_tokens": 0},
    },
    "gemini": {
        "promptTokenCount": "total",
        "candidatesTokenCount": "total",
        "cachedContentTokenCount": 0,
        "thoughtsTokenCount": 0,
        "toolUsePromptTokenCount": 0,
        "promptTokensDetails": "list",
        "cacheTokensDetails": "list",
        "candidatesTokensDetails": "list",
    },
}


def stated_totals(name: str, usage: dict[str, Any]) -> tuple[int, int]:
    """What the object itself says went in and came out, by the provider's own rules."""

    def said(field: str) -> int:
        return usage.get(field) or 0

    if name == "anthropic":
        split = usage.get("cache_creation") or {}
        written = usage.get("cache_creation_input_tokens")
        if written is None:
            written = sum(value or 0 for value in split.values())
        total_in = said("input_tokens") + said("cache_read_input_tokens") + written
        return total_in, said("output_tokens")
    if name == "gemini":
        return (
            said("promptTokenCount") + said("toolUsePromptTokenCount"),
            said("candidatesTokenCount") + said("thoughtsTokenCount"),
        )
    names = NAMES[name]
    return said(names[0]), said(names[1])


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_any_object_is_read_to_its_total_or_refused(name: str) -> None:
    """No object, however crooked, gives a leaf below 0, or leaves that are not its own total."""
    read_objects = 0

    @given(objects_of(SHAPES[name]))
    def law(usage: dict[str, Any]) -> None:
        nonlocal read_objects
        try:
            read = dialects.named(name).read(usage)
        except UsageReadError:
            return
        read_objects += 1
        assert all(leaf.amount > 0 and leaf.undelivered == 0 for leaf in read.leaves)
        assert len({leaf.key for leaf in read.leaves}) == len(read.leaves)
        assert (tokens(read, "in"), tokens(read, "out")) == stated_totals(name, usage)
        found = dialects.detected(usage).read(usage)
        assert found.leaves == read.leaves

    law()
    # A law that refuses everything would hold of nothing.
    assert read_objects >= 20
