"""Every card of docs/rate-cards.md is a card, and charges what the page says it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.pricing import builders as make

from kernel.clock import timestamp_of
from pricing.domain.card import Card, content_hash, read_document
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
UNITS: dict[str, dict[str, Any]] = {
    "in": {"unit": usage.UNIT_TOKEN, "direction": usage.DIRECTION_IN},
    "read": {
        "unit": usage.UNIT_TOKEN,
        "direction": usage.DIRECTION_IN,
        "cache_use": usage.CACHE_USE_READ,
    },
    "out": {"unit": usage.UNIT_TOKEN, "direction": usage.DIRECTION_OUT},
    "reasoning": {
        "unit": usage.UNIT_TOKEN,
        "direction": usage.DIRECTION_OUT,
        "token_kind": usage.TOKEN_KIND_REASONING,
    },
    "search": {"unit": usage.UNIT_SEARCH},
    "audio_ms": {"unit": usage.UNIT_AUDIO_MS},
    "image": {"unit": usage.UNIT_IMAGE},
    "undelivered": {},
}


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
            if name in UNITS and name != "undelivered":
                made.quantities.add(amount=int(value), **UNITS[name])
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
            elif name == "at":
                made.event_time.FromJsonString(value)
            else:
                raise AssertionError(f"the page says {word!r}")
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
    from kernel.money import format_pico

    found = receipts(parse(name), requests.strip("`"))
    if amount == "suspense":
        assert any(receipt.waits for receipt in found)
        return
    assert not any(receipt.waits for receipt in found)
    assert format_pico(sum(receipt.amount_pico for receipt in found)) == amount


def test_the_page_has_boxes_and_figures() -> None:
    assert len(BOXES) >= 10
    assert {name for name, _, _ in SAYS} >= set(BOXES) - {"our-cost"}
