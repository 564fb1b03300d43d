"""Every card of docs/rate-cards.md is a card, and charges what the page says it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.pricing import builders as make

from kernel.clock import timestamp_of
from kernel.money import format_pico
from pricing.domain import dimensions, line_rules
from pricing.domain.card import (
    BASE_MODEL,
    CONTEXT_LENGTH,
    GRADUATED,
    GREATER,
    GREATER_OR_EQUAL,
    MONTHLY_VOLUME,
    PARENT_CLASS,
    VOLUME,
    WHOLE_REQUEST,
    Card,
    content_hash,
    read_document,
)
from pricing.domain.card_yaml import parse_card
from pricing.domain.catalogue import Catalogue, published_card
from pricing.domain.rate import Batch, Cards, Receipt, rate
from tollbook.usage.v1 import usage_pb2 as usage

PAGE = Path(__file__).parents[3] / "docs" / "rate-cards.md"
BOXES = {
    box.split("\n", 1)[0].removeprefix("card: "): box
    for box in re.findall(r"```yaml\n(card: .*?)```", PAGE.read_text(), re.DOTALL)
}
# `rated: CARD | what of a request | amount` under a box: as the page says, for all to read.
SAYS = re.findall(r"^- `([a-z-]+)`: (.*?) = ([0-9.]+|suspense)$", PAGE.read_text(), re.MULTILINE)
# Words of a leaf's dimensions, and what of a quantity they are. Anything else is its attribute.
WORDS: dict[str, tuple[str, int]] = {
    **{word: ("modality", number) for number, word in dimensions.MODALITIES.items()},
    **{word: ("cache_ttl", number) for number, word in dimensions.CACHE_TTLS.items()},
    **{word: ("token_kind", number) for number, word in dimensions.TOKEN_KINDS.items()},
    **{word: ("cache_use", number) for number, word in dimensions.CACHE_USES.items()},
}
DIRECTIONS = {"in": usage.DIRECTION_IN, "out": usage.DIRECTION_OUT}
CONTEXT = ("tier", "region", "adapter", "outcome", "at", "undelivered")


def leaf(text: str) -> dict[str, Any]:
    """A leaf such as `in/write/1h` (tokens), `gpu_ms/h100` or `page`."""
    first, *words = text.split("/")
    found: dict[str, Any] = (
        {"unit": usage.UNIT_TOKEN, "direction": DIRECTIONS[first]}
        if first in DIRECTIONS
        else {"unit": dimensions.UNIT_BY_WORD[first]}
    )
    for word in words:
        name, value = WORDS.get(word, ("attribute", word))
        assert name not in found, f"the page says {text!r}"
        found[name] = value
    return found


def parse(name: str) -> Card:
    return parse_card(BOXES[name])


def receipts(card: Card, requests: str) -> list[Receipt]:
    """Requests such as `in=3000 out=10 tier=flex at=2026-01-01T00:00:00Z; out=5`, in order."""
    data = []
    for position, words in enumerate(requests.split("; ")):
        made = usage.UsageEvent(
            event_id=f"request-{position}",
            account_id="acme",
            served_model="m",
            base_model="m",
            outcome=usage.OUTCOME_COMPLETE,
            event_time=timestamp_of(make.T0_US + 14 * 86_400 * 1_000_000 + 12 * 3_600 * 1_000_000),
        )
        for word in words.split():
            name, value = word.split("=")
            if name not in CONTEXT:
                made.quantities.add(amount=int(value), **leaf(name))
            elif name == "undelivered":
                made.quantities[-1].undelivered_amount = int(value)
            elif name == "tier":
                made.service_tier = value
            elif name == "region":
                made.region = value
            elif name == "adapter":
                made.adapter, made.served_model = value, f"m-{value}"
            elif name == "outcome":
                made.outcome = usage.Outcome.Value(f"OUTCOME_{value.upper()}")
            else:
                made.event_time.FromJsonString(value)
        record = usage.UsageRecord(
            stream_id="s", stream_seq=position, usage_event=made.SerializeToString()
        )
        data.append(make.entry(record.SerializeToString(), position))
    entry = published_card(0, card, 1, content_hash(card.document()))
    cards = Cards(Catalogue([entry], card.purpose), {"acme": "USD"}.get)
    return list(rate(Batch("usage-0", 0, data), cards).receipts())


@pytest.mark.parametrize("name", BOXES)
def test_a_box_is_a_card(name: str) -> None:
    card = parse(name)
    assert read_document(card.document()) == card


@pytest.mark.parametrize(("name", "requests", "amount"), SAYS)
def test_a_figure_of_the_page_is_what_is_charged(name: str, requests: str, amount: str) -> None:
    found = receipts(parse(name), requests.strip("`"))
    if amount == "suspense":
        assert any(receipt.waits for receipt in found)
        return
    assert not any(receipt.waits for receipt in found)
    assert format_pico(sum(receipt.amount_pico for receipt in found)) == amount


def test_the_page_has_boxes_and_figures() -> None:
    assert len(BOXES) >= 10
    assert {name for name, _, _ in SAYS} >= set(BOXES)


def test_every_unit_every_word_of_a_dimension_and_every_line_has_a_figure() -> None:
    """A unit or a word that is added to the contract is added to the page, or this fails."""
    leaves = [
        word.partition("=")[0]
        for _, requests, _ in SAYS
        for word in re.split("[ ;`]+", requests)
        if "=" in word and word.partition("=")[0] not in CONTEXT
    ]
    said = {word for text in leaves for word in text.split("/")}
    # What stands for itself: a token is `in` or `out`, and these are what is not said.
    unsaid = {"token", "none", "text", "plain", "default"}
    words = set(dimensions.UNIT_BY_WORD).union(*dimensions.ENUM_WORDS.values())
    assert words - unsaid - said == set()
    used = {
        (name, part.priced.line.line_id)
        for name, requests, _ in SAYS
        for receipt in receipts(parse(name), requests.strip("`"))
        for part in receipt.leaves
        if part.priced is not None
    }
    lines = {(name, line.line_id) for name in BOXES for line in parse(name).lines}
    assert lines - used == set()


def test_every_kind_of_tier_fallback_factor_and_rounding_stands_on_the_page() -> None:
    found = [parse(name) for name in BOXES]
    lines = [line for one in found for line in one.lines]
    tiers = {(line.tiers.by, line.tiers.mode) for line in lines if line.tiers is not None}
    assert tiers == {
        (CONTEXT_LENGTH, GRADUATED),
        (CONTEXT_LENGTH, WHOLE_REQUEST),
        (MONTHLY_VOLUME, GRADUATED),
        (MONTHLY_VOLUME, VOLUME),
    }
    assert {line.tiers.boundary for line in lines if line.tiers} == {GREATER, GREATER_OR_EQUAL}
    assert {line.rounding for line in lines} == set(line_rules.ROUNDINGS)
    assert {step for one in found for step in one.fallback} == {BASE_MODEL, PARENT_CLASS}
    assert {name for line in lines for name, _ in line.match} == set(dimensions.MATCH_FIELDS)
