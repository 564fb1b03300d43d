"""How fast rating is: leaves of a log to charges, on one core, beside a plain loop of decimals.

Both get the same leaves in the same process, one after the other, and must
come to the same charges. The loop is what one would write first: parse, look
the price up, multiply and add `decimal.Decimal`s. Parsing alone is measured
too, since nothing that reads the events one by one can be faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from typing import Any, Final

from bench import usage_load
from kernel import leaf as leaves
from kernel.clock import timestamp_of
from kernel.money import PICO
from pricing.domain import books, tally
from pricing.domain.card import content_hash
from pricing.domain.card_yaml import parse_card
from pricing.domain.replay import Replay
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import control_pb2
from tollbook.usage.v1 import usage_pb2

RUN_LEAVES: Final = 20_000
ROUNDS: Final = 3
LOG: Final = "usage-0"
MODELS: Final = ("tiny-qwen", "tiny-qwen-adapter", "large-qwen")
PRICES: Final = {"plain": "0.15", "cached": "0.075", "output": "0.60"}


def card_yaml() -> str:
    """Prices of all models that the load uses."""
    lines = [
        line
        for model in MODELS
        for line in (
            f"  - {{id: {model}-in, match: {{model: {model}, direction: in, cache_use: none}},"
            f" per: 1000000, price: {PRICES['plain']}}}",
            f"  - {{id: {model}-read, match: {{model: {model}, direction: in, cache_use: read}},"
            f" per: 1000000, price: {PRICES['cached']}}}",
            f"  - {{id: {model}-out, match: {{model: {model}, direction: out}},"
            f" per: 1000000, price: {PRICES['output']}}}",
        )
    ]
    head = "card: bench\ncurrency: USD\neffective_from: 2026-01-01T00:00:00Z\nlines:\n"
    return head + "\n".join(lines) + "\n"


def control_records() -> list[bytes]:
    """Leaves of a control log: the card, then all accounts."""
    card = parse_card(card_yaml())
    document = card.document()
    changes: list[dict[str, Any]] = [
        {
            "rate_card_published": control_pb2.RateCardPublished(
                card_id=card.card_id,
                version=1,
                content_hash=content_hash(document),
                effective_from=timestamp_of(card.effective_from_us),
                document=document,
            )
        }
    ]
    changes += [
        {"account_created": control_pb2.AccountCreated(account_id=name, currency="USD")}
        for name in (f"account-{number:04d}" for number in range(usage_load.ACCOUNTS))
    ]
    return [
        _leaf(
            position,
            control_pb2.ControlRecord(
                recorded_time=timestamp_of(0), actor="bench", **change
            ).SerializeToString(),
        )
        for position, change in enumerate(changes)
    ]


def _leaf(position: int, value: bytes) -> bytes:
    return leaves.encode(ledger_pb2.DISPOSITION_ACCEPTED, 0, position, 0, b"", value)


def usage_leaves(count: int) -> list[bytes]:
    """Leaves of a usage log."""
    made = usage_load.values(0, 1, count, seed=1)
    return [_leaf(position, value) for position, (_, value) in enumerate(made)]


def opened() -> Replay:
    """Books that know the accounts and the card, and no usage."""
    replay = Replay()
    for position, raw in enumerate(control_records()):
        replay.apply_control(position, raw)
    return replay


def _best_s(work: Callable[[], object]) -> float:
    best_s = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - started)
    return best_s


def rate(data: Sequence[bytes]) -> dict[str, int]:
    """Charges of each account in pico-units, by the code that the projector runs."""
    replay = opened()
    pin = replay.sizes["control"]
    for first in range(0, len(data), RUN_LEAVES):
        replay.apply_usage(LOG, first, pin, data[first : first + RUN_LEAVES])
    prefix = books.revenue("")
    return {
        account.removeprefix(prefix): amount
        for (account, _), amount in replay.balances.items()
        if account.startswith(prefix)
    }


def rate_by_decimals(data: Sequence[bytes]) -> dict[str, int]:
    """The same, by a loop of decimals."""
    million = Decimal(10**6)
    prices = {
        (model, direction, cache): Decimal(PRICES[kind]) / million
        for model in MODELS
        for kind, direction, cache in (
            ("plain", usage_pb2.DIRECTION_IN, usage_pb2.CACHE_USE_NONE),
            ("cached", usage_pb2.DIRECTION_IN, usage_pb2.CACHE_USE_READ),
            ("output", usage_pb2.DIRECTION_OUT, usage_pb2.CACHE_USE_UNSPECIFIED),
        )
    }
    charged: dict[str, Decimal] = {}
    with localcontext(prec=60):
        for raw in data:
            record = usage_pb2.UsageRecord.FromString(leaves.decode(raw).value)
            event = usage_pb2.UsageEvent.FromString(record.usage_event)
            for item in event.quantities:
                price = prices[event.served_model, item.direction, item.cache_use]
                charged[event.account_id] = (
                    charged.get(event.account_id, Decimal(0)) + price * item.amount
                )
        return {account: int(amount * PICO) for account, amount in charged.items()}


def parse_alone(data: Sequence[bytes]) -> None:
    """Read every event and look at nothing."""
    for raw in data:
        record = usage_pb2.UsageRecord.FromString(leaves.decode(raw).value)
        usage_pb2.UsageEvent.FromString(record.usage_event)


def run(events: int = 200_000) -> dict[str, Any]:
    """Measure; events a second on one core, the best of some rounds."""
    tally.prepare()
    data = usage_leaves(events)
    if rate(data) != rate_by_decimals(data):
        raise AssertionError("rating and the loop of decimals do not come to the same charges")
    rated_s = _best_s(lambda: rate(data))
    decimals_s = _best_s(lambda: rate_by_decimals(data))
    parsed_s = _best_s(lambda: parse_alone(data))
    return {
        "events": events,
        "accounts": usage_load.ACCOUNTS,
        "rating_events_per_s": round(events / rated_s),
        "decimal_loop_events_per_s": round(events / decimals_s),
        "parsing_alone_events_per_s": round(events / parsed_s),
        "of_decimal_loop": round(decimals_s / rated_s, 2),
    }
