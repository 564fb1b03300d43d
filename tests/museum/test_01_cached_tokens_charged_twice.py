"""Cached tokens charged twice: litellm#14849, langfuse#10592 and #12306.

Some systems count cached tokens inside the prompt, some beside it. One request,
whoever reports it, is one vector of leaves and one price.
"""

from __future__ import annotations

import pytest
from tests.unit.pricing.published.rated import amount_pico, catalogue, rate
from tests.unit.pricing.readers.dialect_objects import (
    WITHOUT_CACHE_WRITES,
    WRITERS,
    Request,
    vector,
)

from pricing.domain.readers import dialects

pytestmark = pytest.mark.museum

CARD = """
card: standard
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: in, match: {model: m, direction: in}, per: 1_000_000, price: 3.00}
  - {id: write, match: {model: m, direction: in, cache_use: write}, per: 1_000_000, price: 3.75}
  - {id: read, match: {model: m, direction: in, cache_use: read}, per: 1_000_000, price: 0.30}
  - {id: out, match: {model: m, direction: out}, per: 1_000_000, price: 15.00}
"""
REQUESTS = [
    Request(plain_in=1200, cache_read=90_000, plain_out=34, reasoning=448),
    Request(plain_in=1200, cache_read=90_000, cache_write=800, plain_out=34, reasoning=448),
    Request(plain_in=0, cache_read=5000, plain_out=1),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_one_request_costs_the_same_in_every_dialect(request_: Request) -> None:
    cards = catalogue(CARD)
    # Worked out here: no token stands in two places.
    expected_pico = (
        3_000_000 * request_.plain_in
        + 3_750_000 * request_.cache_write
        + 300_000 * request_.cache_read
        + 15_000_000 * (request_.plain_out + request_.reasoning)
    )
    seen = 0
    for name, write in WRITERS.items():
        if request_.cache_write and name in WITHOUT_CACHE_WRITES:
            continue
        usage = write(request_)
        leaves = vector(dialects.named(name).read(usage))
        assert sum(leaves.values()) == request_.total_in + request_.total_out, name
        assert leaves.get("in.read", 0) == request_.cache_read, name
        assert amount_pico(rate(cards, name, usage, "m")) == expected_pico, name
        seen += 1
    assert seen >= 5
