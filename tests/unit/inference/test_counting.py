"""Laws of the count: nothing appears, nothing vanishes, nothing stands in two leaves."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.domain.counting import (
    UNKNOWN,
    Tally,
    input_tokens_of,
    output_digest,
    output_tokens_of,
)
from inference.domain.event import body_digest, complete, summary_of
from inference.domain.outcome import End, finish_reason_of, outcome_of
from kernel.clock import timestamp_of
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

IDS = st.integers(0, 2**32 - 1)


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    """Any tally that deltas in any cut and order can lead to."""
    prompt = draw(st.integers(0, 5_000))
    choices = draw(st.integers(1, 4))
    tally = Tally(prompt, choices)
    tally.note_cached(0, draw(st.integers(0, prompt)))
    for _ in range(draw(st.integers(0, 12))):
        tally.add(draw(st.integers(0, choices - 1)), draw(st.lists(IDS, max_size=8)))
    for choice in range(choices):
        tally.hand_over(choice, draw(st.integers(0, len(tally.choices[choice].token_ids))))
    return tally


@given(tallies())
def test_leaves_are_disjoint_and_sum_to_what_was_counted(tally: Tally) -> None:
    leaves = tally.quantities()
    keys = [(leaf.direction, leaf.cache_use) for leaf in leaves]
    assert len(set(keys)) == len(keys)
    assert all(0 <= leaf.undelivered_amount <= leaf.amount for leaf in leaves)
    assert all(leaf.amount > 0 for leaf in leaves)
    assert output_tokens_of(leaves) == sum(len(choice.token_ids) for choice in tally.choices)
    assert input_tokens_of(leaves) == (tally.prompt_tokens, tally.cached_tokens)
    assert sum(leaf.undelivered_amount for leaf in leaves) == tally.undelivered_tokens


@given(st.lists(st.lists(IDS, max_size=6), max_size=10), st.integers(0, 3))
def test_how_deltas_are_cut_changes_nothing(deltas: list[list[int]], pause: int) -> None:
    """One token at a time or all at once: the same count and the same digest."""
    whole, single = Tally(10, 1), Tally(10, 1)
    whole.add(0, [token for delta in deltas for token in delta])
    for delta in deltas:
        for token in delta:
            single.add(0, [token])
        single.add(0, [])
    assert whole.quantities() == single.quantities()
    assert whole.output_digest() == single.output_digest()


@given(st.lists(st.lists(IDS, max_size=20), max_size=4))
def test_digest_is_sha256_over_little_endian_ids(choices: list[list[int]]) -> None:
    flat = [token for choice in choices for token in choice]
    expected = hashlib.sha256(struct.pack(f"<{len(flat)}I", *flat)).digest() if flat else b""
    assert output_digest(choices) == expected


def test_cached_figure_is_the_first_scheduled_choices_and_is_taken_once() -> None:
    tally = Tally(100, 3)
    tally.note_cached(2, 64)
    assert tally.cached_tokens == 0
    tally.note_cached(0, UNKNOWN)
    tally.note_cached(0, 32)
    tally.note_cached(0, 96)
    assert tally.cached_tokens == 32


@pytest.mark.parametrize("cached", [-2, 101])
def test_more_cached_than_prompt_is_refused(cached: int) -> None:
    with pytest.raises(ValueError, match="cached"):
        Tally(100, 1).note_cached(0, cached)


def test_more_handed_over_than_generated_is_refused() -> None:
    tally = Tally(1, 1)
    tally.add(0, [1, 2])
    with pytest.raises(ValueError, match="handed over"):
        tally.hand_over(0, 3)


def test_handing_over_never_goes_back() -> None:
    tally = Tally(1, 1)
    tally.add(0, [1, 2, 3])
    tally.hand_over(0, 3)
    tally.hand_over(0, 1)
    assert tally.undelivered_tokens == 0


@given(st.sampled_from(list(End)), st.integers(0, 10_000))
def test_every_end_has_an_outcome_and_no_output_is_never_complete(end: End, tokens: int) -> None:
    outcome = outcome_of(end, tokens)
    assert outcome in usage.Outcome.values()
    assert outcome != usage.OUTCOME_UNSPECIFIED
    if tokens == 0:
        assert outcome not in (usage.OUTCOME_COMPLETE, usage.OUTCOME_ERROR_MID_STREAM)


@given(st.lists(st.sampled_from(usage.FinishReason.values()), min_size=1, max_size=5))
def test_finish_reason_is_one_of_the_choices_own(reasons: list[int]) -> None:
    found = finish_reason_of(reasons)
    assert found in reasons or found == usage.FINISH_REASON_UNSPECIFIED
    if usage.FINISH_REASON_ERROR in reasons:
        assert found == usage.FINISH_REASON_ERROR


def spec(request_id: str = "", **fields: object) -> inference.GenerationSpec:
    return inference.GenerationSpec(request_id=request_id, **fields)  # type: ignore[arg-type]


def test_body_digest_ignores_the_id_and_nothing_else() -> None:
    one = spec("a", model="m", tokens=inference.TokenPrompt(token_ids=[1, 2]))
    same = spec("b", model="m", tokens=inference.TokenPrompt(token_ids=[1, 2]))
    assert body_digest(one) == body_digest(same)
    assert one.request_id == "a"
    others = [
        spec("a", model="n", tokens=inference.TokenPrompt(token_ids=[1, 2])),
        spec("a", model="m", tokens=inference.TokenPrompt(token_ids=[1, 3])),
        spec(
            "a",
            model="m",
            tokens=inference.TokenPrompt(token_ids=[1, 2]),
            sampling=inference.SamplingParams(max_tokens=1),
        ),
    ]
    assert len({body_digest(other) for other in (one, *others)}) == 4


@given(tallies(), st.sampled_from(list(End)))
def test_summary_says_what_the_event_says(tally: Tally, end: End) -> None:
    template = usage.UsageEvent(event_id="e", account_id="a", event_time=timestamp_of(1))
    event = complete(template, tally, end, 5 if tally.output_tokens else 0, 9)
    assert event.HasField("first_token_time") == bool(tally.output_tokens)
    summary = summary_of(event, "usage-0")
    assert summary.output_tokens == tally.output_tokens
    assert (summary.prompt_tokens, summary.cached_tokens) == (
        tally.prompt_tokens,
        tally.cached_tokens,
    )
    assert list(summary.quantities) == list(event.quantities)
    # The template is a record of its own and stays as it was.
    assert not template.quantities
