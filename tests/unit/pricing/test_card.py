"""A rate card's errors name their place and what to do."""

from __future__ import annotations

import pytest
from tests.unit.pricing.builders import CARD

from pricing.domain.card import read_document
from pricing.domain.card_yaml import parse_card
from pricing.domain.document import DocumentError


def problems(text: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        parse_card(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_card_survives_its_document() -> None:
    card = parse_card(CARD)
    assert read_document(card.document()) == card
    assert [line.price_pico for line in card.lines] == [150_000, 75_000, 600_000]


@pytest.mark.parametrize(
    ("broken", "place", "message"),
    [
        (CARD.replace('"0.15"', '"0.15e1"'), "line 6,", "not a decimal number"),
        (CARD.replace('"0.15"', '"0.0000000000001"'), "line 6,", "whole number of pico-units"),
        (CARD.replace('"0.15"', '"-1"'), "line 6,", "not negative"),
        (CARD.replace("direction: out", "direction: sideways"), "line 8,", "one of in, none, out"),
        (CARD.replace("currency: USD", "currency: dollars"), "line 3,", "ISO 4217"),
        (CARD.replace("2026-01-01T00:00:00Z", "tomorrow"), "line 4,", "RFC 3339"),
        (CARD.replace("tiny-out", "tiny-in"), "line 8,", "stands twice"),
        (CARD + "surprise: 1\n", "line 9,", "has no 'surprise'"),
        ("card: [", "line 1,", "expected"),
        ("", "line 1,", "empty"),
        (
            CARD.replace("cache_use: read", "cache_use: none"),
            "line 7,",
            "equal specificity",
        ),
    ],
)
def test_a_broken_card_says_where_and_what(broken: str, place: str, message: str) -> None:
    found = problems(broken)
    assert any(text.startswith(place) and message in text for text in found), found
