"""A producer's stream: what came and what is missing, against a plain set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.domain.streams import MAX_MISSING_RANGES, StreamOverflowError, StreamState


@given(st.lists(st.integers(0, 80)))
def test_it_agrees_with_a_set_of_numbers(numbers: list[int]) -> None:
    stream = StreamState()
    seen: set[int] = set()
    for number in numbers:
        assert stream.note(number) == (number not in seen)
        seen.add(number)
        highest = max(seen)
        absent = {seq for first, end in stream.missing for seq in range(first, end)}
        assert stream.next_seq == highest + 1
        assert absent == set(range(highest)) - seen
        # In order, apart from each other, none empty: one way to write one state.
        flat = [bound for part in stream.missing for bound in part]
        assert flat == sorted(set(flat))


def test_a_jump_over_everything_is_one_range() -> None:
    stream = StreamState()
    assert stream.note(2**62)
    assert stream.missing == [(0, 2**62)]


def overflowing() -> StreamState:
    stream = StreamState()
    for number in range(MAX_MISSING_RANGES):
        assert stream.note(2 * number + 1)
    return stream


def test_one_missing_range_too_many_is_refused_and_changes_nothing() -> None:
    stream = overflowing()
    before = (stream.next_seq, list(stream.missing))
    with pytest.raises(StreamOverflowError):
        stream.note(stream.next_seq + 5)
    assert (stream.next_seq, stream.missing) == before
    assert stream.note(stream.next_seq)
    assert stream.note(0)


def test_splitting_a_range_beyond_the_limit_is_refused_and_changes_nothing() -> None:
    stream = StreamState()
    assert stream.note(100)
    for number in range(MAX_MISSING_RANGES - 1):
        assert stream.note(102 + 2 * number)
    before = list(stream.missing)
    with pytest.raises(StreamOverflowError):
        stream.note(50)
    assert stream.missing == before
    assert stream.note(0)
