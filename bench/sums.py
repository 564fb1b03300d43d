"""Receipts against postings, to the last unit: every event's receipt is added up beside the run's
postings, of TOLLBOOK_SUMS_EVENTS events (1,000,000), a run of leaves at a time.

A fifth of them is rated by the flat card, the rest half by the tiered one, half by
all published models. What does not agree ends the bench.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from bench import rating
from kernel import cycles
from pricing.domain import books, tally
from pricing.domain.card import Card
from pricing.domain.card_yaml import parse_card
from pricing.domain.rate import Batch, Cards, rate

EVENTS: Final = int(os.environ.get("TOLLBOOK_SUMS_EVENTS", "1000000"))
# From one run of leaves to the next: a prime, so that runs begin all over the traces.
_STEP: Final = 7_919
_MODELS: Final = ("model-a", "model-b", "model-c")


def _case(
    cards: Sequence[Card], models: Sequence[str], found: Sequence[rating.Request], count: int
) -> dict[str, Any]:
    priced = Cards(rating.catalogue_of(cards), lambda account_id: "USD")
    balances: dict[books.BalanceKey, int] = {}
    receipts: Counter[str] = Counter()
    postings = 0
    begin = time.perf_counter()
    for first in range(0, count, rating.BATCH_LEAVES):
        turn = first * _STEP % len(found)
        size = min(rating.BATCH_LEAVES, count - first)
        data = rating.leaves_of([*found[turn:], *found[:turn]], models, size)
        done = rate(Batch(rating.LOG, first, data), priced)
        if done.unpriced:
            raise AssertionError(f"{len(done.unpriced)} events have no price")
        books.apply(balances, done.postings)
        postings += len(done.postings)
        for receipt in done.receipts():
            receipts[receipt.event.account_id] += receipt.amount_pico
    if sum(balances.values()):
        raise AssertionError(f"all accounts come to {sum(balances.values())}, not to 0")
    if (posted := rating.charged(balances)) != +receipts:
        raise AssertionError(f"postings come to {posted}, receipts to {dict(receipts)}")
    return {
        "events": count,
        "postings": postings,
        "accounts": len(posted),
        "charged_pico": str(sum(posted.values())),
        "seconds": round(time.perf_counter() - begin),
    }


def run() -> dict[str, Any]:
    """Add up, and say how much it came to."""
    tally.prepare()
    cycles.settle()
    what, found = rating.requests()
    published, cards, names = rating.imported()
    fifth = EVENTS // 5
    cases = {
        "flat": _case([parse_card(rating.FLAT)], _MODELS, found, fifth),
        "tiered": _case([parse_card(rating.TIERED)], _MODELS, found, 2 * fifth),
        published: _case(cards, names, found, EVENTS - 3 * fifth),
    }
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"usage": what, "prices": cases, "peak_rss_mib": peak_kib // 1024}
