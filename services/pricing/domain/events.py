"""Accepted usage records as rating reads them: plain tuples, once parsed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from kernel import leaf as leaves
from kernel.clock import us_of
from pricing.domain.dimensions import STANDARD_TIER, Context, LeafKey, leaf_key
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.usage.v1 import usage_pb2 as usage


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
    trace_id: bytes
    span_id: bytes


class Reading(NamedTuple):
    """An engine's own counters at a position of a usage log."""

    position: int
    engine_id: str
    generation_tokens: int
    waste_tokens: int
    final: bool


class UnusableLeafError(ValueError):
    """An accepted leaf that does not read as the contract says: a defect of admission."""


def parse_usage(position: int, record: usage.UsageRecord) -> Event:
    """Read the usage event that a record carries. Errors: UnusableLeafError."""
    try:
        event = usage.UsageEvent.FromString(record.usage_event)
    except DecodeError as error:
        raise UnusableLeafError(f"position {position}: {error}") from None
    context = Context(
        event.served_model,
        event.base_model or event.served_model,
        event.adapter,
        event.service_tier or STANDARD_TIER,
        event.region,
    )
    parts = tuple(
        EventLeaf(
            leaf_key(
                item.unit,
                item.direction,
                item.modality,
                item.cache_use,
                item.cache_ttl,
                item.token_kind,
                item.attribute,
            ),
            item.amount,
            item.undelivered_amount,
        )
        for item in event.quantities
    )
    if any(not 0 <= part.undelivered <= part.amount for part in parts):
        raise UnusableLeafError(f"position {position}: a quantity is negative or over-undelivered")
    return Event(
        position,
        event.event_id,
        event.account_id,
        context,
        event.outcome,
        us_of(event.event_time),
        parts,
        event.engine_id,
        record.trace_id,
        record.span_id,
    )


def read_leaves(first_position: int, data: Sequence[bytes]) -> Iterator[Event | Reading]:
    """Give what counts of a run of leaves: accepted usage events and engine readings.

    Duplicates, conflicts, rejected records and stream closings count for
    nothing and are passed over.
    """
    for position, raw in enumerate(data, first_position):
        leaf = leaves.decode(raw)
        if leaf.disposition != ledger.DISPOSITION_ACCEPTED:
            continue
        record = usage.UsageRecord.FromString(leaf.value)
        body = record.WhichOneof("body")
        if body == "usage_event":
            yield parse_usage(position, record)
        elif body == "engine_reading":
            reading = record.engine_reading
            yield Reading(
                position,
                reading.engine_id,
                reading.generation_tokens,
                sum(item.tokens for item in reading.waste),
                reading.final,
            )
