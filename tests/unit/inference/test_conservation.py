"""Every token an engine counted is settled, in flight or itemised: the arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.domain.conservation import EngineBook
from tollbook.usage.v1 import usage_pb2 as usage

AMOUNTS = st.lists(st.integers(0, 1_000), max_size=20)


@given(AMOUNTS, AMOUNTS, st.integers(0, 100))
def test_a_sound_run_has_no_residual(settled: list[int], wasted: list[int], flying: int) -> None:
    book = EngineBook("e")
    for amount in settled:
        book.settle(amount)
    for amount in wasted:
        book.discard(usage.WASTE_KIND_AFTER_STOP, amount)
    book.count(sum(settled) + sum(wasted) + flying, 0)
    assert book.residual(flying) == 0


@given(AMOUNTS, st.integers(-50, 50).filter(bool))
def test_a_token_too_many_or_too_few_shows(settled: list[int], error: int) -> None:
    book = EngineBook("e")
    for amount in settled:
        book.settle(amount)
    book.generation_tokens = sum(settled) + error
    assert book.residual() == error


@given(AMOUNTS, st.integers(0, 100_000))
def test_a_lost_engine_ends_without_residual_and_charges_nothing_more(
    settled: list[int], counter: int
) -> None:
    book = EngineBook("e")
    for amount in settled:
        book.settle(amount)
    book.count(counter, 7)
    book.close_lost()
    reading = book.reading(1)
    lost = sum(item.tokens for item in reading.waste)
    assert lost == max(0, counter - sum(settled))
    assert reading.generation_tokens == sum(settled) + lost
    assert reading.generation_tokens - reading.inferred_tokens == counter
    assert reading.inferred_tokens == max(0, sum(settled) - counter)
    assert book.residual() == 0
    assert reading.final


def test_counters_only_grow() -> None:
    book = EngineBook("e")
    book.count(10, 20)
    book.count(4, 30)
    assert (book.generation_tokens, book.prompt_tokens) == (10, 30)


def test_negative_waste_is_refused() -> None:
    with pytest.raises(ValueError, match="waste"):
        EngineBook("e").discard(usage.WASTE_KIND_WARM_UP, -1)
