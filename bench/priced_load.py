"""A card for the models of usage_load.py, and leaves of logs that hold it and its usage."""

from __future__ import annotations

from typing import Any, Final

from bench import usage_load
from kernel import leaf as leaves
from kernel.clock import timestamp_of
from pricing.domain.card import content_hash
from pricing.domain.card_yaml import parse_card
from pricing.domain.replay import Replay
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import control_pb2

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


def control_payloads() -> list[bytes]:
    """Records of a control log: the card, then all accounts."""
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
        control_pb2.ControlRecord(
            recorded_time=timestamp_of(0), actor="bench", **change
        ).SerializeToString()
        for change in changes
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
    for position, value in enumerate(control_payloads()):
        replay.apply_control(position, _leaf(position, value))
    return replay
