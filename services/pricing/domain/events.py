"""Accepted usage records as rating reads them: plain tuples, once parsed."""

from __future__ import annotations

from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from kernel import leaf as leaves
from kernel.clock import us_of
from pricing.domain.dimensions import STANDARD_TIER, Context, LeafKey, leaf_key
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.usage.v1 import usage_pb2 as usage

MAX_QUANTITY: Final = 10**12
"""As in the contract; the ledger refuses more, and so does this reader."""


class EventLeaf(NamedTuple):
    """One leaf of an event: its key and its counts in the key's unit."""

    key: LeafKey
    amount: int
    undelivered: int


class Event(NamedTuple):
    """An accepted usage event at a position of a usage log."""

    position: int
    event_id: str
    account_id: str
    context: Context
    outcome: int
    event_time_us: int
    leaves: tuple[EventLeaf, ...]
    engine_id: str
    project_id: str = ""
    key_id: str = ""


class Reading(NamedTuple):
    """An engine's own cumulative counters at a position of a usage log."""

    position: int
    engine_id: str
    generation_tokens: int
    waste_tokens: int
    final: bool


class UnusableLeafError(ValueError):
    """An accepted leaf that does not read as the contract says: a defect of admission."""


def record_of(raw: bytes) -> usage.UsageRecord | None:
    """The usage record in a leaf; None when the leaf counts for nothing (not accepted).

    Errors: UnusableLeafError.
    """
    try:
        leaf = leaves.decode(raw)
        if leaf.disposition != ledger.DISPOSITION_ACCEPTED:
            return None
        if leaf.aside:
            raise UnusableLeafError("its record is too large to stand in the leaf")
        return usage.UsageRecord.FromString(leaf.value)
    except (leaves.LeafError, DecodeError) as error:
        raise UnusableLeafError(str(error)) from None


def usage_event_of(record: usage.UsageRecord) -> usage.UsageEvent:
    """The usage event in a record. Errors: UnusableLeafError."""
    try:
        return usage.UsageEvent.FromString(record.usage_event)
    except DecodeError as error:
        raise UnusableLeafError(str(error)) from None


def context_of(event: usage.UsageEvent) -> Context:
    """What the event brings that may select a price, with the unspecified filled in."""
    return Context(
        event.served_model,
        event.base_model or event.served_model,
        event.adapter,
        event.service_tier or STANDARD_TIER,
        event.region,
    )


def check_counts(amount: int, undelivered: int) -> None:
    """Refuse counts that could raise a balance or overflow. Errors: UnusableLeafError."""
    if not 0 <= undelivered <= amount <= MAX_QUANTITY:
        raise UnusableLeafError(
            f"a quantity of {amount}, of which {undelivered} undelivered, is not"
            f" 0 <= undelivered <= amount <= {MAX_QUANTITY}"
        )


def leaf_of(item: usage.Quantity) -> EventLeaf:
    """A quantity as rating reads it. Errors: UnusableLeafError."""
    check_counts(item.amount, item.undelivered_amount)
    key = leaf_key(
        item.unit,
        item.direction,
        item.modality,
        item.cache_use,
        item.cache_ttl,
        item.token_kind,
        item.attribute,
    )
    return EventLeaf(key, item.amount, item.undelivered_amount)


def event_of(position: int, event: usage.UsageEvent) -> Event:
    """A usage event as rating reads it. Errors: UnusableLeafError."""
    if not event.account_id:
        raise UnusableLeafError("a usage event without an account")
    return Event(
        position,
        event.event_id,
        event.account_id,
        context_of(event),
        event.outcome,
        us_of(event.event_time),
        tuple(leaf_of(item) for item in event.quantities),
        event.engine_id,
        event.project_id,
        event.key_id,
    )


def reading_of(position: int, reading: usage.EngineReading) -> Reading:
    """An engine's reading. Errors: UnusableLeafError when a counter is negative."""
    waste = [item.tokens for item in reading.waste]
    if reading.generation_tokens < 0 or any(tokens < 0 for tokens in waste):
        raise UnusableLeafError("an engine's counter is negative")
    return Reading(
        position, reading.engine_id, reading.generation_tokens, sum(waste), reading.final
    )


def read_event(position: int, raw: bytes) -> Event:
    """The usage event in a leaf. Errors: UnusableLeafError when there is none."""
    record = record_of(raw)
    if record is None or record.WhichOneof("body") != "usage_event":
        raise UnusableLeafError(f"position {position} holds no accepted usage event")
    return event_of(position, usage_event_of(record))
