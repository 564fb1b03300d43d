"""Records for the ledger's tests: usable by default, one thing wrong when asked."""

from __future__ import annotations

from typing import Any

from ledger.domain.batch import Record
from tollbook.usage.v1 import usage_pb2 as usage

NOON_S = 1_800_000_000


def quantity(amount: int = 7, **fields: Any) -> usage.Quantity:
    fields.setdefault("unit", usage.UNIT_TOKEN)
    fields.setdefault("direction", usage.DIRECTION_OUT)
    return usage.Quantity(amount=amount, **fields)


def event(event_id: str = "req-1", account_id: str = "acme", **fields: Any) -> usage.UsageEvent:
    fields.setdefault("served_model", "tiny")
    fields.setdefault("outcome", usage.OUTCOME_COMPLETE)
    fields.setdefault("quantities", [quantity()])
    made = usage.UsageEvent(event_id=event_id, account_id=account_id, **fields)
    if not made.HasField("event_time"):
        made.event_time.seconds = NOON_S
    return made


def wrap(
    body: usage.UsageEvent | bytes, seq: int = 0, stream_id: str = "inference-0/boot/0"
) -> bytes:
    raw = body if isinstance(body, bytes) else body.SerializeToString()
    return usage.UsageRecord(
        stream_id=stream_id, stream_seq=seq, usage_event=raw
    ).SerializeToString()


def close(seq: int, stream_id: str = "inference-0/boot/0") -> bytes:
    return usage.UsageRecord(
        stream_id=stream_id, stream_seq=seq, stream_close=usage.StreamClose(last_seq=seq - 1)
    ).SerializeToString()


def reading(seq: int = 0, stream_id: str = "inference-0/boot/0", **fields: Any) -> bytes:
    fields.setdefault("engine_id", "engine-0")
    made = usage.EngineReading(**fields)
    if not made.HasField("reading_time"):
        made.reading_time.seconds = NOON_S
    return usage.UsageRecord(
        stream_id=stream_id, stream_seq=seq, engine_reading=made
    ).SerializeToString()


def records(values: list[bytes | None], first_offset: int = 0) -> list[Record]:
    return [
        (offset, NOON_S * 1000 + offset, b"acme", value)
        for offset, value in enumerate(values, first_offset)
    ]
