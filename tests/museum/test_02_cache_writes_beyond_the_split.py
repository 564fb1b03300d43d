"""Cache writes lost when the split by time is partial: litellm#42663, new-api#5756.

The total counts. What of it no part names is kept for the default time, and is
charged as such; parts that are more than the total are refused.
"""

from __future__ import annotations

import pytest
from tests.unit.pricing.published.rated import amount_pico, catalogue, rate
from tests.unit.pricing.readers.dialect_objects import vector

from pricing.domain.readers import dialects
from pricing.domain.readers.reading import UsageReadError

pytestmark = pytest.mark.museum

CARD = """
card: standard
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: in, match: {direction: in}, per: 1_000_000, price: 3.00}
  - {id: default, match: {direction: in, cache_use: write}, per: 1_000_000, price: 3.75}
  - {id: 1h, match: {direction: in, cache_use: write, cache_ttl: 1h}, per: 1_000_000, price: 6.00}
  - {id: out, match: {direction: out}, per: 1_000_000, price: 15.00}
"""


@pytest.mark.parametrize(
    ("five_minutes", "one_hour"),
    [(0, 0), (300, 0), (0, 200), (300, 200), (800, 200), (1000, 0), (0, 1000)],
)
def test_all_that_was_written_is_paid_for(five_minutes: int, one_hour: int) -> None:
    usage = {
        "input_tokens": 10,
        "output_tokens": 1,
        "cache_creation_input_tokens": 1000,
        "cache_creation": {
            "ephemeral_5m_input_tokens": five_minutes,
            "ephemeral_1h_input_tokens": one_hour,
        },
    }
    leaves = vector(dialects.named("anthropic").read(usage))
    assert leaves.get("in.write", 0) == 1000 - five_minutes - one_hour
    assert sum(leaves.values()) == 1011
    # The five minutes are the default: both kinds have its price.
    expected_pico = 3_000_000 * 10 + 15_000_000 + 6_000_000 * one_hour
    expected_pico += 3_750_000 * (1000 - one_hour)
    assert amount_pico(rate(catalogue(CARD), "anthropic", usage, "m")) == expected_pico


def test_by_openais_names_too() -> None:
    usage = {
        "input_tokens": 2000,
        "output_tokens": 1,
        "input_tokens_details": {
            "cache_write_tokens": 1000,
            "cache_write_tokens_details": {"ttl_30m_tokens": 600, "ttl_12h_tokens": 0},
        },
    }
    leaves = vector(dialects.named("openai_responses").read(usage))
    assert leaves == {"in": 1000, "in.write": 400, "in.write.custom.30m": 600, "out": 1}


def test_a_split_beyond_its_total_is_refused() -> None:
    with pytest.raises(UsageReadError, match="ephemeral_1h_input_tokens: with 800 here"):
        dialects.named("anthropic").read(
            {
                "input_tokens": 10,
                "output_tokens": 1,
                "cache_creation_input_tokens": 1000,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 300,
                    "ephemeral_1h_input_tokens": 800,
                },
            }
        )
