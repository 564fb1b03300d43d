"""One Kafka value, read as far as admission needs it: is it usable, and which record is it?

Owns the rules of admission version 1 (kernel.leaf.VERSION names the version):
the rules beside the fields of usage.proto, and those that no single field can
tell (disjoint leaves, undelivered <= amount). A pure function of the bytes, so
that an auditor gets the same answer from the leaf alone.

Speed is a rule here, as every event of the mesh passes: the envelope and the
body are parsed once each. The body is read through a narrow view of
UsageEvent in which `quantities` and `provenance` are repeated bytes (the same
wire form), so that the few thousand distinct quantities in use are each
checked once and then found in a table.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.usage.v1 import usage_pb2 as usage

MAX_VALUE_BYTES: Final = 64_000
"""A larger value is oversize. Smaller ones always stand in the leaf, never aside."""

MAX_QUANTITIES: Final = 64
MAX_AMOUNT: Final = 1_000_000_000_000
MAX_WASTE_KINDS: Final = 32
_DIGEST_BYTES: Final = 32

# Instants that protobuf's own Timestamp allows: years 1 to 9999.
_MIN_SECONDS: Final = -62_135_596_800
_MAX_SECONDS: Final = 253_402_300_799

OK: Final = int(ledger.REASON_UNSPECIFIED)
MALFORMED: Final = int(ledger.REASON_MALFORMED)
MISSING_ID: Final = int(ledger.REASON_MISSING_ID)
NEGATIVE_QUANTITY: Final = int(ledger.REASON_NEGATIVE_QUANTITY)
ABSURD_QUANTITY: Final = int(ledger.REASON_ABSURD_QUANTITY)
INCONSISTENT_QUANTITIES: Final = int(ledger.REASON_INCONSISTENT_QUANTITIES)
INVALID_FIELD: Final = int(ledger.REASON_INVALID_FIELD)
OVERSIZE: Final = int(ledger.REASON_OVERSIZE)
EMPTY: Final = int(ledger.REASON_EMPTY)


class Scanned(NamedTuple):
    """What admission needs of a record.

    `identity` (32 bytes) is what makes two records one; empty when the record
    is not usable. `stream_id` is empty when there is no readable envelope.
    `closes` is true for the closing record of a stream.
    """

    reason: int
    stream_id: str
    stream_seq: int
    identity: bytes
    closes: bool


_NOTHING: Final = Scanned(EMPTY, "", 0, b"", False)
_TOO_LARGE: Final = Scanned(OVERSIZE, "", 0, b"", False)
_UNREADABLE: Final = Scanned(MALFORMED, "", 0, b"", False)


def _narrow_view() -> Any:
    """Build the view of UsageEvent that reads quantities and provenance as bytes."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tollbook/ledger/domain/scan.proto",
        package="tollbook.ledger.domain",
        syntax="proto3",
        dependency=["google/protobuf/timestamp.proto"],
    )
    view = file.message_type.add(name="UsageEventView")
    # The contract's own descriptor gives numbers and types; only two fields differ.
    for number, source in usage.UsageEvent.DESCRIPTOR.fields_by_number.items():
        target = view.field.add(name=source.name, number=number, label=field.LABEL_OPTIONAL)
        if source.name in ("quantities", "provenance"):
            target.label = field.LABEL_REPEATED
            target.type = field.TYPE_BYTES
        elif source.enum_type is not None:
            target.type = field.TYPE_INT32
        elif source.message_type is not None:
            target.type = field.TYPE_MESSAGE
            target.type_name = f".{source.message_type.full_name}"
        else:
            target.type = field.Type.ValueType(source.type)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tollbook.ledger.domain.UsageEventView")
    )


_read_event: Final = _narrow_view().FromString
_read_record: Final = usage.UsageRecord.FromString
_sha256: Final = hashlib.sha256

_OUTCOMES: Final = frozenset(usage.Outcome.values()) - {usage.OUTCOME_UNSPECIFIED}
_FINISH_REASONS: Final = frozenset(usage.FinishReason.values())
_UNITS: Final = frozenset(usage.Unit.values()) - {usage.UNIT_UNSPECIFIED}
_DIRECTIONS: Final = frozenset(usage.Direction.values())
_MODALITIES: Final = frozenset(usage.Modality.values())
_CACHE_USES: Final = frozenset(usage.CacheUse.values())
_CACHE_TTLS: Final = frozenset(usage.CacheTtl.values())
_TOKEN_KINDS: Final = frozenset(usage.TokenKind.values())
_WASTE_KINDS: Final = frozenset(usage.WasteKind.values()) - {usage.WASTE_KIND_UNSPECIFIED}

# Tables of checked parts, emptied when full. Both are caches of pure functions: their state never
# changes an answer.
_MAX_TABLE: Final = 1 << 16
_quantities: dict[bytes, tuple[int, Any]] = {}
_provenances: dict[bytes, int] = {}


def _check_quantity(data: bytes) -> tuple[int, Any]:
    """(reason, kind) of one serialized Quantity; the kind is what must not repeat in an event."""
    try:
        item = usage.Quantity.FromString(data)
    except DecodeError:
        return MALFORMED, None
    if item.amount < 0 or item.undelivered_amount < 0:
        return NEGATIVE_QUANTITY, None
    if item.amount > MAX_AMOUNT:
        return ABSURD_QUANTITY, None
    if item.undelivered_amount > item.amount:
        return INCONSISTENT_QUANTITIES, None
    if (
        item.unit not in _UNITS
        or item.direction not in _DIRECTIONS
        or item.modality not in _MODALITIES
        or item.cache_use not in _CACHE_USES
        or item.cache_ttl not in _CACHE_TTLS
        or item.token_kind not in _TOKEN_KINDS
        or len(item.attribute) > 64
        or "\0" in item.attribute
    ):
        return INVALID_FIELD, None
    # What is left out is read as its default, so both ways of writing are one kind.
    kind = (
        item.unit,
        item.direction,
        item.modality or usage.MODALITY_TEXT,
        item.cache_use or usage.CACHE_USE_NONE,
        item.cache_ttl,
        item.token_kind or usage.TOKEN_KIND_PLAIN,
        item.attribute,
    )
    return OK, kind


def _check_provenance(data: bytes) -> int:
    try:
        item = usage.Provenance.FromString(data)
    except DecodeError:
        return MALFORMED
    digests = (
        item.model_digest,
        item.adapter_digest,
        item.tokenizer_digest,
        item.template_digest,
    )
    return INVALID_FIELD if any(len(digest) > _DIGEST_BYTES for digest in digests) else OK


def _quantities_reason(parts: Any) -> int:
    if len(parts) > MAX_QUANTITIES:
        return INVALID_FIELD
    kinds = []
    for data in parts:
        found = _quantities.get(data)
        if found is None:
            found = _check_quantity(data)
            if len(_quantities) >= _MAX_TABLE:
                _quantities.clear()
            _quantities[data] = found
        if found[0]:
            return found[0]
        kinds.append(found[1])
    if len(kinds) > 1 and len(set(kinds)) < len(kinds):
        return INCONSISTENT_QUANTITIES
    return OK


def _provenance_reason(parts: Any) -> int:
    # A singular field written twice is merged by a full parse; nobody writes it so.
    if len(parts) > 1:
        return INVALID_FIELD
    for data in parts:
        found = _provenances.get(data)
        if found is None:
            found = _check_provenance(data)
            if len(_provenances) >= _MAX_TABLE:
                _provenances.clear()
            _provenances[data] = found
        return found
    return OK


def _instant_reason(instant: Any) -> int:
    if not _MIN_SECONDS <= instant.seconds <= _MAX_SECONDS or not 0 <= instant.nanos < 10**9:
        return INVALID_FIELD
    return OK


def _scan_event(data: bytes) -> tuple[int, bytes]:
    """(reason, identity) of a serialized UsageEvent."""
    try:
        event = _read_event(data)
    except DecodeError:
        return MALFORMED, b""
    account_id = event.account_id
    event_id = event.event_id
    if not account_id or not event_id:
        return MISSING_ID, b""
    reason = _quantities_reason(event.quantities)
    if reason:
        return reason, b""
    project_id = event.project_id
    key_id = event.key_id
    hold_id = event.hold_id
    served_model = event.served_model
    base_model = event.base_model
    adapter = event.adapter
    service_tier = event.service_tier
    region = event.region
    engine_id = event.engine_id
    if (
        len(account_id) > 64
        or len(event_id) > 128
        or len(project_id) > 64
        or len(key_id) > 64
        or len(hold_id) > 64
        or not 0 < len(served_model) <= 256
        or len(base_model) > 256
        or len(adapter) > 256
        or len(service_tier) > 32
        or len(region) > 64
        or len(engine_id) > 128
        or event.outcome not in _OUTCOMES
        or event.finish_reason not in _FINISH_REASONS
        or len(event.output_digest) > _DIGEST_BYTES
        or not 0 <= event.choice_count <= 1024
        or not event.HasField("event_time")
        # A NUL is no character to any database.
        or "\0"
        in (
            f"{account_id}{event_id}{project_id}{key_id}{hold_id}{served_model}{base_model}"
            f"{adapter}{service_tier}{region}{engine_id}"
        )
    ):
        return INVALID_FIELD, b""
    reason = _instant_reason(event.event_time) or _provenance_reason(event.provenance)
    if reason:
        return reason, b""
    # NUL stands in neither id, so the pair reads back in one way only.
    return OK, _sha256(f"e{account_id}\0{event_id}".encode()).digest()


def _scan_reading(reading: usage.EngineReading) -> int:
    if not reading.engine_id:
        return MISSING_ID
    if reading.generation_tokens < 0 or reading.prompt_tokens < 0:
        return NEGATIVE_QUANTITY
    if any(item.tokens < 0 for item in reading.waste):
        return NEGATIVE_QUANTITY
    kinds = [item.kind for item in reading.waste]
    if len(set(kinds)) < len(kinds):
        return INCONSISTENT_QUANTITIES
    if (
        len(kinds) > MAX_WASTE_KINDS
        or not _WASTE_KINDS.issuperset(kinds)
        or len(reading.engine_id) > 128
        or "\0" in reading.engine_id
        or not reading.HasField("reading_time")
    ):
        return INVALID_FIELD
    return _instant_reason(reading.reading_time)


def _scan_other(record: usage.UsageRecord) -> tuple[int, bool]:
    """(reason, closes) of a record that carries no usage event."""
    body = record.WhichOneof("body")
    if body == "stream_close":
        last = record.stream_close.last_seq
        return (OK if last == record.stream_seq - 1 else INVALID_FIELD), True
    if body == "engine_reading":
        return _scan_reading(record.engine_reading), False
    if body == "usage_event":
        return MISSING_ID, False
    return INVALID_FIELD, False


def scan(value: bytes | None) -> Scanned:
    """Read one record's value. Never raises: what is wrong with it is the reason."""
    if not value:
        return _NOTHING
    if len(value) > MAX_VALUE_BYTES:
        return _TOO_LARGE
    try:
        record = _read_record(value)
    except DecodeError:
        return _UNREADABLE
    stream_id = record.stream_id
    stream_seq = record.stream_seq
    if not stream_id:
        return Scanned(MISSING_ID, "", 0, b"", False)
    if (
        len(stream_id) > 128
        or "\0" in stream_id
        or stream_seq < 0
        or len(record.trace_id) > 16
        or len(record.span_id) > 8
    ):
        return Scanned(INVALID_FIELD, "", 0, b"", False)
    event = record.usage_event
    if event:
        reason, identity = _scan_event(event)
        return Scanned(reason, stream_id, stream_seq, identity, False)
    reason, closes = _scan_other(record)
    if reason:
        return Scanned(reason, stream_id, stream_seq, b"", False)
    # A reading or a closing has no id of its own: its place in the stream is its identity.
    identity = _sha256(f"s{stream_id}\0{stream_seq}".encode()).digest()
    return Scanned(OK, stream_id, stream_seq, identity, closes)


def body_digest(value: bytes) -> bytes:
    """SHA-256 of what tells a duplicate from a conflict, for a value that `scan` found usable.

    For a usage event: its bytes as the producer wrote them, without the
    envelope. For any other record: the whole value.
    """
    event = _read_record(value).usage_event
    return _sha256(event or value).digest()


def account_of(value: bytes) -> str:
    """Account of a value that `scan` found usable; empty when it is no usage event."""
    event = _read_record(value).usage_event
    return str(_read_event(event).account_id) if event else ""


def trace_of(value: bytes) -> tuple[bytes, bytes]:
    """(trace id, span id) of a value that `scan` found usable; empty where there is none."""
    record = _read_record(value)
    return record.trace_id, record.span_id
