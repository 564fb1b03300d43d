"""A priority request priced as a standard one: langfuse#13780.

Charged is the tier that served, not the one that was asked for; a tier that no
line and no factor names has no price, and is never the standard one.
"""

from __future__ import annotations

from typing import Any

import pytest

from pricing.domain.card_yaml import parse_card
from pricing.domain.offline import OfflineRater, RatedLine
from pricing.domain.readers.reading import UsageReadError
from pricing.domain.readers.usage_line import read_line

pytestmark = pytest.mark.museum

BY_LINES = """
card: lines
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: in, match: {direction: in}, per: 1_000_000, price: 2.00}
  - {id: fast-in, match: {direction: in, service_tier: priority}, per: 1_000_000, price: 3.50}
"""
BY_FACTORS = """
card: factors
currency: USD
effective_from: 2026-01-01T00:00:00Z
multipliers:
  - {id: priority, match: {service_tier: priority}, factor: 1.75}
  - {id: batch, match: {service_tier: batch}, factor: 0.5}
lines:
  - {id: in, match: {direction: in}, per: 1_000_000, price: 2.00}
"""
CHAT = {"prompt_tokens": 1_000_000, "completion_tokens": 0}
MESSAGES = {"input_tokens": 1_000_000, "output_tokens": 0}


def rated(card: str, tier: str, usage: dict[str, Any]) -> RatedLine:
    line: dict[str, Any] = {"model": "m", "time": "2026-01-15T00:00:00Z", "usage": usage}
    if tier:
        line["service_tier"] = tier
    return OfflineRater([parse_card(card)], "USD").rate(read_line(line))


@pytest.mark.parametrize("card", [BY_LINES, BY_FACTORS])
def test_the_tier_that_served_is_charged(card: str) -> None:
    assert rated(card, "", CHAT).amount_pico == 2 * 10**12
    assert rated(card, "default", CHAT).amount_pico == 2 * 10**12
    assert rated(card, "priority", CHAT).amount_pico == 3_500_000_000_000
    # Anthropic says it in the usage object itself.
    assert rated(card, "", MESSAGES | {"service_tier": "priority"}).amount_pico == 3_500_000_000_000
    assert rated(card, "", MESSAGES | {"service_tier": "standard"}).amount_pico == 2 * 10**12


@pytest.mark.parametrize("card", [BY_LINES, BY_FACTORS])
def test_a_tier_without_a_price_waits_and_is_seen(card: str) -> None:
    for usage, tier in ((CHAT, "flex"), (MESSAGES | {"speed": "fast"}, "")):
        result = rated(card, tier, usage)
        assert result.unpriced == 1
        assert result.leaves[0].priced is None
        assert result.amount_pico == 0


@pytest.mark.parametrize("tier", ["auto", "turbo", "Priority"])
def test_a_word_that_is_no_tier_is_refused(tier: str) -> None:
    with pytest.raises(UsageReadError, match="service_tier: the openai_chat dialect has no"):
        rated(BY_LINES, tier, CHAT)
    with pytest.raises(UsageReadError, match="service_tier"):
        rated(BY_LINES, "", MESSAGES | {"service_tier": tier})


def test_the_tier_asked_for_does_not_count_where_another_served() -> None:
    usage = MESSAGES | {"service_tier": "standard"}
    with pytest.raises(UsageReadError, match="'priority' beside 'standard'"):
        rated(BY_LINES, "priority", usage)
