"""Recognising plain usage records in their bytes: scan.py's answer for nearly every record.

A record is plain when it is a usable usage event written the ordinary way:
fields in order of number, each at most once, ids in ASCII, nothing unknown.
What is not plain is not judged here at all; scan.py judges it. So this code
may be too strict, which costs time, and must never be too lenient, which a
property test guards: whatever is plain, scan.py finds usable, with the same
stream, number and identity.

Source: protobuf's encoding (varints, tags, length-delimited fields).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kernel.jit import inlined
from kernel.sha256 import hash_slices
from kernel.varint import varint
from ledger.domain.columns import Bytes, Columns, Numbers
from ledger.domain.compiled.jit import compiled, copy
from ledger.domain.scan import MAX_AMOUNT, MAX_QUANTITIES, MAX_VALUE_BYTES
from tollbook.usage.v1 import usage_pb2 as usage

_VARINT: Final = 0
_LENGTH: Final = 2
_BAD: Final = -1
_MIN_SECONDS: Final = 0
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
def _is_text(data: Any, at: int, length: int) -> bool:
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
        if tag & 7 != _VARINT or number <= last or number > 2:
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
        if tag & 7 != _LENGTH or number <= last or number > 4:
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
        if tag & 7 != _VARINT or number <= last or number > 9:
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
def _plain_event(data: Any, at: int, end: int, kinds: Any, ids: Any) -> bool:
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
        if wire == _LENGTH:
            if value > end - at:
                return False
            limit = _TEXT_LIMITS[number] if number < 32 else 0
            if limit:
                if value > limit or not _is_text(data, at, value):
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
        elif wire == _VARINT:
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


@compiled
def _read_plain(
    data: Any,
    value_at: Any,
    value_length: Any,
    plain: Any,
    stream_at: Any,
    stream_length: Any,
    seq: Any,
    ids: Any,
) -> None:
    kinds = np.zeros(MAX_QUANTITIES, np.int64)
    for index in range(len(value_at)):
        at = value_at[index]
        end = at + value_length[index]
        plain[index] = False
        if value_length[index] < 1 or value_length[index] > MAX_VALUE_BYTES:
            continue
        last = 0
        good = True
        stream_length[index] = 0
        seq[index] = 0
        body_at = body_end = 0
        while good and at < end:
            tag = data[at]
            number = tag >> 3
            value, at = varint(data, at + 1, end)
            if at < 0 or number <= last or number > 5:
                good = False
            elif number == 2:
                good = tag & 7 == _VARINT
                seq[index] = value
            elif tag & 7 != _LENGTH or value > end - at:
                good = False
            else:
                if number == 1:
                    good = value <= 128 and _is_text(data, at, value)
                    stream_at[index] = at
                    stream_length[index] = value
                elif number == 3:
                    good = value <= 16
                elif number == 4:
                    good = value <= 8
                else:
                    body_at = at
                    body_end = at + value
                at += value
            last = number
        if not good or stream_length[index] == 0 or body_end == body_at:
            continue
        plain[index] = _plain_event(data, body_at, body_end, kinds, ids[index])


@compiled
def _write_identities(data: Any, plain: Any, ids: Any, out: Any, starts: Any, ends: Any) -> int:
    """Write what scan.py hashes for an identity: 'e', account id, NUL, event id."""
    at = 0
    count = 0
    for index in range(len(plain)):
        if not plain[index]:
            continue
        starts[count] = at
        out[at] = 101
        at = copy(out, at + 1, data, ids[index, 2], ids[index, 3])
        out[at] = 0
        at = copy(out, at + 1, data, ids[index, 0], ids[index, 1])
        ends[count] = at
        count += 1
    return count


@compiled
def _number_streams(
    data: Any, plain: Any, stream_at: Any, stream_length: Any, table: Any, number: Any, first: Any
) -> int:
    """Number the streams in order of appearance; `first` gets a record of each. Gives how many."""
    mask = len(table) - 1
    count = 0
    last = -1
    for index in range(len(plain)):
        if not plain[index]:
            continue
        at = stream_at[index]
        length = stream_length[index]
        found = -1
        if last >= 0 and _same(data, at, length, stream_at[last], stream_length[last]):
            found = number[last]
        else:
            slot = np.uint64(14695981039346656037)
            for place in range(at, at + length):
                slot = (slot ^ np.uint64(data[place])) * np.uint64(1099511628211)
            where = np.int64(slot & np.uint64(mask))
            while table[where] >= 0:
                other = first[table[where]]
                if _same(data, at, length, stream_at[other], stream_length[other]):
                    found = table[where]
                    break
                where = (where + 1) & mask
            if found < 0:
                found = count
                table[where] = count
                first[count] = index
                count += 1
        number[index] = found
        last = index
    return count


@inlined
def _same(data: Any, one_at: int, one_length: int, other_at: int, other_length: int) -> bool:
    if one_length != other_length:
        return False
    one, other = np.uint64(one_at), np.uint64(other_at)
    different = 0
    for place in range(np.uint64(one_length)):
        different |= data[one + place] != data[other + place]
    return different == 0


class PlainRecords(NamedTuple):
    """What stands in the plain records of some columns; rows of others mean nothing."""

    plain: npt.NDArray[np.bool_]
    seq: Numbers
    stream: Numbers
    """Index into `stream_ids`."""
    stream_ids: list[str]
    identity: Bytes
    """(n, 32): the identity as scan.py gives it."""


def read_plain(columns: Columns) -> PlainRecords:
    """Find the plain records and what admission needs of them."""
    count = len(columns)
    data = columns.data
    plain = np.zeros(count, dtype=np.bool_)
    seq, stream_at, stream_length, stream = (np.zeros(count, dtype=np.int64) for _ in range(4))
    ids = np.zeros((count, 4), dtype=np.int64)
    _read_plain(
        data, columns.value_at, columns.value_length, plain, stream_at, stream_length, seq, ids
    )
    table = np.full(1 << max(4, (2 * count).bit_length()), -1, dtype=np.int64)
    first = np.zeros(count, dtype=np.int64)
    streams = _number_streams(data, plain, stream_at, stream_length, table, stream, first)
    stream_ids = [
        data[stream_at[index] : stream_at[index] + stream_length[index]].tobytes().decode("ascii")
        for index in first[:streams].tolist()
    ]
    return PlainRecords(plain, seq, stream, stream_ids, _identities(data, plain, ids))


def _identities(data: Bytes, plain: npt.NDArray[np.bool_], ids: Numbers) -> Bytes:
    room = int((ids[plain, 1] + ids[plain, 3] + 2).sum())
    text = np.empty(room, dtype=np.uint8)
    starts, ends = np.zeros(len(plain), dtype=np.int64), np.zeros(len(plain), dtype=np.int64)
    found = _write_identities(data, plain, ids, text, starts, ends)
    identity = np.zeros((len(plain), 32), dtype=np.uint8)
    identity[plain] = hash_slices(text, starts[:found], ends[:found])
    return identity
