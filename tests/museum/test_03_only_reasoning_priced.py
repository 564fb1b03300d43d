"""Only the reasoning tokens priced: litellm#18599.

Of an output of 482 tokens 448 were reasoning: 482 are paid for, with a price of
their own for reasoning or without one.
"""

from __future__ import annotations

import pytest
from tests.unit.pricing.published.rated import amount_pico, catalogue, rate
from tests.unit.pricing.readers.dialect_objects import WRITERS, Request

pytestmark = pytest.mark.museum

CARD = """
card: standard
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: out, match: {direction: out}, per: 1_000_000, price: 10.00}
"""
DEARER = """
  - {id: reasoning, match: {direction: out, token_kind: reasoning}, per: 1_000_000, price: 12.00}
"""
REQUEST = Request(plain_out=34, reasoning=448)


@pytest.mark.parametrize("dialect", sorted(WRITERS))
def test_exactly_482_are_billed(dialect: str) -> None:
    usage = WRITERS[dialect](REQUEST)
    rated = rate(catalogue(CARD), dialect, usage, "m")
    assert sum(leaf.charged for leaf in rated) == 482
    assert amount_pico(rated) == 482 * 10_000_000
    dearer = rate(catalogue(CARD + DEARER.lstrip("\n")), dialect, usage, "m")
    assert sum(leaf.charged for leaf in dearer) == 482
    assert amount_pico(dearer) == 34 * 10_000_000 + 448 * 12_000_000
