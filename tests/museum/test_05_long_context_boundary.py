"""The long-context price at its boundary: helicone#5788, claude-code-hub#869, opik#6982.

One token before the boundary, on it and one beyond, for both readings of it and
both ways of charging; and it is the whole context that counts, cached tokens too.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.pricing.published.rated import amount_pico, catalogue, rate

pytestmark = pytest.mark.museum

N = 200_000


def card(mode: str, boundary: str) -> str:
    lines = [
        ("in", "direction: in", "3.00", "6.00"),
        ("read", "direction: in, cache_use: read", "0.30", "0.60"),
        ("out", "direction: out", "15.00", "22.50"),
    ]
    head = "card: long\ncurrency: USD\neffective_from: 2026-01-01T00:00:00Z\nlines:\n"
    return head + "".join(
        f"  - {{id: {name}, match: {{model: m, {match}}}, per: 1_000_000, price: {low},"
        f" tiers: {{by: context_length, mode: {mode}, boundary: {boundary},"
        f" steps: [{{over: {N}, price: {high}}}]}}}}\n"
        for name, match, low, high in lines
    )


def usage(context: int, cached: int = 0, output: int = 100) -> dict[str, Any]:
    return {
        "input_tokens": context - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    }


# The first context length at the dearer price.
FIRST_DEARER = {"gt": N + 1, "gte": N}


@pytest.mark.parametrize("boundary", ["gt", "gte"])
@pytest.mark.parametrize("context", [N - 1, N, N + 1])
def test_of_the_whole_request(boundary: str, context: int) -> None:
    rated = rate(catalogue(card("whole_request", boundary)), "anthropic", usage(context), "m")
    dear = context >= FIRST_DEARER[boundary]
    expected = (
        context * 6_000_000 + 100 * 22_500_000 if dear else context * 3_000_000 + 1500 * 10**6
    )
    assert amount_pico(rated) == expected


@pytest.mark.parametrize("boundary", ["gt", "gte"])
@pytest.mark.parametrize("context", [N - 1, N, N + 1])
def test_graduated_each_token_by_its_own_place(boundary: str, context: int) -> None:
    rated = rate(catalogue(card("graduated", boundary)), "anthropic", usage(context, 0, 0), "m")
    beyond = max(0, context - (FIRST_DEARER[boundary] - 1))
    assert amount_pico(rated) == (context - beyond) * 3_000_000 + beyond * 6_000_000


@pytest.mark.parametrize("cached", [1, N // 2, N - 1])
def test_cached_tokens_are_context_too(cached: int) -> None:
    """Keyed on the fresh tokens alone, none of these would reach the boundary."""
    cards = catalogue(card("whole_request", "gt"))
    at_it = rate(cards, "anthropic", usage(N, cached), "m")
    beyond = rate(cards, "anthropic", usage(N + 1, cached), "m")
    assert amount_pico(at_it) == (N - cached) * 3_000_000 + cached * 300_000 + 100 * 15_000_000
    assert amount_pico(beyond) == (
        (N + 1 - cached) * 6_000_000 + cached * 600_000 + 100 * 22_500_000
    )


def test_output_is_no_context() -> None:
    rated = rate(catalogue(card("whole_request", "gt")), "anthropic", usage(N, 0, 50_000), "m")
    assert amount_pico(rated) == N * 3_000_000 + 50_000 * 15_000_000
