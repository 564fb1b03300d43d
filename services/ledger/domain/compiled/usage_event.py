"""Recognising a plain UsageEvent in its bytes; what plain is, usage.py says.

Source: protobuf's encoding (varints, tags, length-delimited fields).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from kernel.jit import inlined
from kernel.varint import varint
from ledger.domain.compiled.jit import compiled
from ledger.domain.scan import MAX_AMOUNT, MAX_QUANTITIES
from tollbook.usage.v1 import usage_pb2 as usage

VARINT: Final = 0
LENGTH: Final = 2
_BAD: Final = -1
_MAX_SECONDS: Final = 253_402_300_799

_LAST_UNIT: Final = max(usage.Unit.values())
_LAST_DIRECTION: Final = max(usage.Direction.values())
_LAST_MODALITY: Final = max(usage.Modality.values())
_LAST_CACHE_USE: Final = max(usage.CacheUse.values())
_LAST_CACHE_TTL: Final = max(usage.CacheTtl.values())
_LAST_TOKEN_KIND: Final = max(usage.TokenKind.values())
_LAST_OUTCOME: Final = max(usage.Outcome.values())
_LAST_FINISH_REASON: Final = max(usage.FinishReason.values())

# Longest text of each field of UsageEvent, by field number; 0: the field is no text.
_TEXT_LIMITS: Final = np.zeros(32, dtype=np.int64)
for _name, _limit in {
    "event_id": 128,
    "account_id": 64,
    "project_id": 64,
    "key_id": 64,
    "hold_id": 64,
    "served_model": 256,
    "base_model": 256,
    "adapter": 256,
    "service_tier": 32,
    "region": 64,
    "engine_id": 128,
}.items():
    _TEXT_LIMITS[usage.UsageEvent.DESCRIPTOR.fields_by_name[_name].number] = _limit

_EVENT_ID: Final = usage.UsageEvent.EVENT_ID_FIELD_NUMBER
_ACCOUNT_ID: Final = usage.UsageEvent.ACCOUNT_ID_FIELD_NUMBER
_SERVED_MODEL: Final = usage.UsageEvent.SERVED_MODEL_FIELD_NUMBER
_PROVENANCE: Final = usage.UsageEvent.PROVENANCE_FIELD_NUMBER
_QUANTITIES: Final = usage.UsageEvent.QUANTITIES_FIELD_NUMBER
_OUTCOME: Final = usage.UsageEvent.OUTCOME_FIELD_NUMBER
_FINISH_REASON: Final = usage.UsageEvent.FINISH_REASON_FIELD_NUMBER
_EVENT_TIME: Final = usage.UsageEvent.EVENT_TIME_FIELD_NUMBER
_FIRST_TOKEN_TIME: Final = usage.UsageEvent.FIRST_TOKEN_TIME_FIELD_NUMBER
_END_TIME: Final = usage.UsageEvent.END_TIME_FIELD_NUMBER
_OUTPUT_DIGEST: Final = usage.UsageEvent.OUTPUT_DIGEST_FIELD_NUMBER
_CHOICE_COUNT: Final = usage.UsageEvent.CHOICE_COUNT_FIELD_NUMBER


@inlined
def is_text(data: Any, at: int, length: int) -> bool:
    """Whether these bytes are ASCII without a NUL."""
    # No way out of the loop and no signed index, so that it becomes vector instructions.
    first = np.uint64(at)
    bad = 0
    for place in range(np.uint64(length)):
        byte = data[first + place]
        bad |= (byte == 0) | (byte > 127)
    return bad == 0


@compiled
def _plain_instant(data: Any, at: int, end: int) -> bool:
    """Whether this is a Timestamp of an allowed instant since 1970."""
    last = 0
    while at < end:
        tag = data[at]
        at += 1
        number = tag >> 3
        if tag & 7 != VARINT or number <= last or number > 2:
            return False
        last = number
        value, at = varint(data, at, end)
        if at < 0:
            return False
        if value > (_MAX_SECONDS if number == 1 else 999_999_999):
            return False
    return True


@compiled
def _plain_digests(data: Any, at: int, end: int) -> bool:
    """Whether this is a Provenance."""
    last = 0
    while at < end:
        tag = data[at]
        at += 1
        number = tag >> 3
        if tag & 7 != LENGTH or number <= last or number > 4:
            return False
        last = number
        length, at = varint(data, at, end)
        if at < 0 or length > 32 or length > end - at:
            return False
        at += length
    return True


@compiled
def _plain_quantity(data: Any, at: int, end: int) -> int:
    """A number for the kind of a Quantity that carries no attribute; _BAD when it is not plain."""
    last = 0
    unit = direction = modality = cache_use = cache_ttl = token_kind = 0
    amount = undelivered = 0
    while at < end:
        tag = data[at]
        at += 1
        number = tag >> 3
        if tag & 7 != VARINT or number <= last or number > 9:
            return _BAD
        last = number
        value, at = varint(data, at, end)
        if at < 0:
            return _BAD
        if number == 1:
            unit = value
        elif number == 2:
            direction = value
        elif number == 3:
            modality = value
        elif number == 4:
            cache_use = value
        elif number == 5:
            cache_ttl = value
        elif number == 6:
            token_kind = value
        elif number == 8:
            amount = value
        elif number == 9:
            undelivered = value
        else:
            return _BAD
    if (
        unit < 1
        or unit > _LAST_UNIT
        or direction > _LAST_DIRECTION
        or modality > _LAST_MODALITY
        or cache_use > _LAST_CACHE_USE
        or cache_ttl > _LAST_CACHE_TTL
        or token_kind > _LAST_TOKEN_KIND
        or amount > MAX_AMOUNT
        or undelivered > amount
    ):
        return _BAD
    # Unspecified is read as text, as no cache and as plain.
    kind = unit
    kind = kind * 16 + direction
    kind = kind * 16 + max(modality, 1)
    kind = kind * 16 + max(cache_use, 1)
    kind = kind * 16 + cache_ttl
    return kind * 16 + max(token_kind, 1)


@compiled
def plain_event(data: Any, at: int, end: int, kinds: Any, ids: Any) -> bool:
    """Whether this is a plain UsageEvent; `ids` gets place and length of event and account id."""
    last = 0
    count = 0
    required = 0
    ids[0] = ids[1] = ids[2] = ids[3] = 0
    while at < end:
        tag: Any = np.int64(data[at])
        at += 1
        if tag > 127:
            # Numbers 16 to 31 take a second byte.
            if at >= end or data[at] != 1:
                return False
            tag = (tag & 127) | 128
            at += 1
        number = tag >> 3
        wire = tag & 7
        if number < last or (number == last and number != _QUANTITIES):
            return False
        last = number
        value, at = varint(data, at, end)
        if at < 0:
            return False
        if wire == LENGTH:
            if value > end - at:
                return False
            limit = _TEXT_LIMITS[number] if number < 32 else 0
            if limit:
                if value > limit or not is_text(data, at, value):
                    return False
                if number == _EVENT_ID:
                    ids[0] = at
                    ids[1] = value
                elif number == _ACCOUNT_ID:
                    ids[2] = at
                    ids[3] = value
                elif number == _SERVED_MODEL and value:
                    required |= 1
            elif number == _QUANTITIES:
                if count == MAX_QUANTITIES:
                    return False
                kind = _plain_quantity(data, at, at + value)
                if kind < 0:
                    return False
                for before in range(count):
                    if kinds[before] == kind:
                        return False
                kinds[count] = kind
                count += 1
            elif number == _EVENT_TIME:
                if not _plain_instant(data, at, at + value):
                    return False
                required |= 2
            elif number in (_FIRST_TOKEN_TIME, _END_TIME):
                if not _plain_instant(data, at, at + value):
                    return False
            elif number == _PROVENANCE:
                if not _plain_digests(data, at, at + value):
                    return False
            elif number != _OUTPUT_DIGEST or value > 32:
                return False
            at += value
        elif wire == VARINT:
            if number == _OUTCOME:
                if value < 1 or value > _LAST_OUTCOME:
                    return False
                required |= 4
            elif number == _FINISH_REASON:
                if value > _LAST_FINISH_REASON:
                    return False
            elif number != _CHOICE_COUNT or value > 1024:
                return False
        else:
            return False
    return required == 7 and ids[1] > 0 and ids[3] > 0
