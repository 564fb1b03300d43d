"""Leaves as the ledger would write them, for tests of the pure core."""

from __future__ import annotations

import hashlib
from typing import Any

from kernel import leaf as leaves
from kernel.clock import timestamp_of
from pricing.domain.card import Card, content_hash
from pricing.domain.card_yaml import parse_card
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.pricing.v1 import accounts_pb2, control_pb2, money_pb2
from tollbook.usage.v1 import usage_pb2 as usage

T0_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z

CARD = """
card: standard
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: tiny-in, match: {model: tiny, direction: in, cache_use: none}, per: 1000000, price: "0.15"}
  - {id: cached, match: {model: tiny, direction: in, cache_use: read}, per: 1000000, price: 0.075}
  - {id: tiny-out, match: {model: tiny, direction: out}, per: 1_000_000, price: 0.60}
"""


def entry(value: bytes, position: int, disposition: int = ledger.DISPOSITION_ACCEPTED) -> bytes:
    return leaves.encode(disposition, 0, position, T0_US // 1000, b"key", value)


def control(position: int, **change: object) -> bytes:
    record = control_pb2.ControlRecord(recorded_time=timestamp_of(T0_US), actor="test", **change)  # type: ignore[arg-type]
    return entry(record.SerializeToString(), position)


def account(position: int, account_id: str = "acme") -> bytes:
    return control(
        position,
        account_created=control_pb2.AccountCreated(account_id=account_id, currency="USD"),
    )


def grant(position: int, grant_id: str, amount_pico: int, account_id: str = "acme") -> bytes:
    return control(
        position,
        credit_granted=control_pb2.CreditGranted(
            grant_id=grant_id,
            account_id=account_id,
            amount=money_pb2.Amount(currency="USD", amount_pico=str(amount_pico)),
        ),
    )


def limit(
    account_id: str,
    window: accounts_pb2.SpendWindow.ValueType,
    amount_pico: int,
    limit_id: str = "",
    **more: Any,
) -> accounts_pb2.LimitSet:
    """A spend limit, by UTC if not said otherwise; each change of it is one of its own."""
    named = limit_id or account_id
    made = {"change_id": f"{named}/{window}/{amount_pico}", "time_zone": "UTC", **more}
    amount = money_pb2.Amount(currency="USD", amount_pico=str(amount_pico))
    return accounts_pb2.LimitSet(
        limit_id=named, account_id=account_id, window=window, amount=amount, **made
    )


def card(position: int, text: str = CARD, version: int = 1) -> bytes:
    return control(position, rate_card_published=published(parse_card(text), version))


def published(made: Card, version: int = 1) -> control_pb2.RateCardPublished:
    document = made.document()
    record = control_pb2.RateCardPublished(
        card_id=made.card_id,
        version=version,
        content_hash=content_hash(document),
        effective_from=timestamp_of(made.effective_from_us),
        document=document,
    )
    if made.effective_to_us is not None:
        record.effective_to.CopyFrom(timestamp_of(made.effective_to_us))
    return record


def event(
    position: int,
    *,
    account_id: str = "acme",
    model: str = "tiny",
    base_model: str = "",
    plain: int = 0,
    cached: int = 0,
    output: int = 0,
    undelivered: int = 0,
    outcome: int = usage.OUTCOME_COMPLETE,
    time_us: int = T0_US,
    project_id: str = "",
) -> bytes:
    made = usage.UsageEvent(
        event_id=hashlib.sha256(f"{account_id}/{position}".encode()).hexdigest()[:16],
        account_id=account_id,
        project_id=project_id,
        served_model=model,
        base_model=base_model,
        outcome=outcome,  # type: ignore[arg-type]
        event_time=timestamp_of(time_us),
        engine_id="engine-1",
    )
    made.quantities.add(unit=usage.UNIT_TOKEN, direction=usage.DIRECTION_IN, amount=plain)
    made.quantities.add(
        unit=usage.UNIT_TOKEN,
        direction=usage.DIRECTION_IN,
        cache_use=usage.CACHE_USE_READ,
        amount=cached,
    )
    made.quantities.add(
        unit=usage.UNIT_TOKEN,
        direction=usage.DIRECTION_OUT,
        amount=output,
        undelivered_amount=undelivered,
    )
    record = usage.UsageRecord(
        stream_id="s", stream_seq=position, usage_event=made.SerializeToString()
    )
    return entry(record.SerializeToString(), position)
