"""A quote: the most that a request can cost, before it runs.

An upper bound by construction: for every token that may come, the dearest of
the leaves it may come as, charged whole, whatever the outcome's rule. Under
the same cards, and under later ones that are not in force at the event's own
time, rating the event gives no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.dimensions import EMBEDDING, Context, LeafKey
from pricing.domain.prices import fixed_pico

_PLAIN_IN: Final = LeafKey("token", "in", "text", "none", "default", "plain", "")
_PLAIN_OUT: Final = _PLAIN_IN._replace(direction="out")
INPUT_LEAVES: Final = (
    _PLAIN_IN,
    _PLAIN_IN._replace(cache_use="read"),
    *(
        _PLAIN_IN._replace(cache_use="write", cache_ttl=ttl)
        for ttl in ("default", "5m", "1h", "custom")
    ),
)
"""What a prompt token may be charged as: the engine's cache decides."""
EMBEDDING_LEAVES: Final = (_PLAIN_IN._replace(token_kind=EMBEDDING), *INPUT_LEAVES)
"""What a token of a request that can have no output may be charged as."""
OUTPUT_LEAVES: Final = (_PLAIN_OUT, _PLAIN_OUT._replace(token_kind="reasoning"))  # noqa: S106 - a kind of token
"""What an output token may be charged as."""


class Bound(NamedTuple):
    """The most that a request can use, and what selects its prices."""

    context: Context
    input_tokens: int
    output_tokens: int
    event_time_us: int


class Quote(NamedTuple):
    """An upper bound in pico-units. `unpriced`: some leaf has no price and is not in it."""

    amount_pico: int
    unpriced: bool


def quote(bound: Bound, account_id: str, currency: str, catalogue: Catalogue) -> Quote:
    """The most that a request can cost an account under the cards of a catalogue."""
    segment = catalogue.segment(bound.event_time_us)
    amount_pico = 0
    unpriced = False
    for tokens, leaves in (
        (bound.input_tokens, INPUT_LEAVES if bound.output_tokens else EMBEDDING_LEAVES),
        (bound.output_tokens, OUTPUT_LEAVES),
    ):
        if not tokens:
            continue
        prices = [
            catalogue.price(account_id, currency, segment, bound.context, key) for key in leaves
        ]
        amount_pico += most_pico(tokens, [found for found in prices if found is not None])
        # The first of them is the ordinary one, which all cards must price.
        unpriced = unpriced or prices[0] is None
    return Quote(amount_pico, unpriced)


def most_pico(units: int, prices: Iterable[Priced]) -> int:
    """The most that units cost, of which each may be charged by any of some prices.

    However they are shared out: each unit by the dearest of them, and once
    what each may charge whatever the count (a package begun, a minimum).
    """
    dearest_pico = fixed = 0
    for found in prices:
        together = (found, *found.surcharges)
        dearest_pico = max(dearest_pico, sum(one.most_pico for one in together))
        fixed += sum(fixed_pico(one.price) for one in together)
    return units * dearest_pico + fixed
