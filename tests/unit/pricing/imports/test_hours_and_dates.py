"""Dates and hours of a price list, rated: the price that the list's own rule says."""

from __future__ import annotations

import pytest
from tests.unit.pricing.imports import sample

from pricing.domain.card_yaml import parse_card
from pricing.domain.imports.genai_cards import import_prices
from pricing.domain.imports.price_file import read_price_file
from pricing.domain.offline import OfflineRater
from pricing.domain.readers.usage_line import read_line


@pytest.mark.parametrize(
    ("at", "price_pico"),
    [
        # Before and after its date; and of hours that overlap the later in the list hold.
        ("2026-08-16T12:00:00Z", 1_000_000),
        ("2026-08-17T00:00:00Z", 4_000_000),
        ("2026-08-17T12:00:00Z", 2_000_000),
        ("2026-08-17T01:30:00Z", 4_000_000),
        ("2026-08-17T02:00:00Z", 3_000_000),
        ("2026-08-17T04:00:00Z", 2_000_000),
        ("2026-08-17T21:59:59Z", 2_000_000),
        ("2026-08-17T22:00:00Z", 4_000_000),
        ("2026-08-16T03:00:00Z", 3_000_000),
    ],
)
def test_dates_and_several_hours_hold_as_the_list_says(at: str, price_pico: int) -> None:
    full = import_prices(read_price_file(sample.full_file()))
    rater = OfflineRater([parse_card(text) for text in full.cards.values()], "USD")
    line = {
        "served_model": "acme/bolt-peaks",
        "outcome": "complete",
        "event_time": at,
        "quantities": [{"unit": "token", "direction": "out", "amount": 1}],
    }
    assert rater.rate(read_line(line)).amount_pico == price_pico
