"""Leaves on their way to readers: out of bundles, into protobuf's wire form, into Arrow's columns.

Sources: C2SP tlog-tiles (entry bundles), protobuf's encoding, the Arrow
columnar format ("Variable-size Binary Layout").
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from kernel.jit import inlined
from kernel.leaf import HEADER_BYTES
from ledger.domain.compiled.jit import compiled, copy
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.usage.v1 import usage_pb2 as usage

NO: Final = 0
YES: Final = 1
UNSURE: Final = 2

NO_TIME: Final = -2

_BAD: Final = -1
_LEAVES_TAG: Final = ledger.ReadEventsResponse.LEAVES_FIELD_NUMBER << 3 | 2
_REJECTED: Final = int(ledger.DISPOSITION_REJECTED)
_USAGE_EVENT: Final = usage.UsageRecord.USAGE_EVENT_FIELD_NUMBER
_ACCOUNT: Final = usage.UsageEvent.ACCOUNT_ID_FIELD_NUMBER
_MODEL: Final = usage.UsageEvent.SERVED_MODEL_FIELD_NUMBER
_TIME: Final = usage.UsageEvent.EVENT_TIME_FIELD_NUMBER
_NANOS: Final = 1_000_000_000
MAX_NANOSECONDS_S: Final = 9_000_000_000
"""Seconds whose nanoseconds still fit into 63 bits."""


@compiled
def split(data: Any, starts: Any, ends: Any) -> bool:
    """Find each leaf of a bundle; False when the bytes are not that many leaves."""
    at: Any = 0
    size = len(data)
    for index in range(len(starts)):
        if at + 2 > size:
            return False
        length = np.int64(data[at]) << 8 | np.int64(data[at + 1])
        at += 2
        if length > size - at:
            return False
        starts[index] = at
        at += length
        ends[index] = at
    return bool(at == size)


@compiled
def wire_size(starts: Any, ends: Any, chosen: Any) -> int:
    """Bytes that the chosen leaves take as a repeated field."""
    size = 0
    for index in chosen:
        length = ends[index] - starts[index]
        size += 1 + (1 if length < 128 else 2 if length < 16384 else 3) + length
    return size


@compiled
def write_wire(data: Any, starts: Any, ends: Any, chosen: Any, out: Any, at: int) -> int:
    """Write the chosen leaves as ReadEventsResponse.leaves; gives the place after them."""
    for index in chosen:
        length = ends[index] - starts[index]
        out[at] = _LEAVES_TAG
        at += 1
        rest = length
        while rest > 127:
            out[at] = np.uint8(rest & 127 | 128)
            rest >>= 7
            at += 1
        out[at] = np.uint8(rest)
        at = copy(out, at + 1, data, starts[index], length)
    return at


@compiled
def write_binary(data: Any, starts: Any, ends: Any, chosen: Any, offsets: Any, out: Any) -> None:
    """Write the chosen leaves one after the other, and the offset of each (n + 1 of them)."""
    at = 0
    offsets[0] = 0
    for row in range(len(chosen)):
        index = chosen[row]
        at = copy(out, at, data, starts[index], ends[index] - starts[index])
        offsets[row + 1] = at


@inlined
def _varint(data: Any, at: int, end: int) -> tuple[Any, int]:
    """(value, place after it) of a varint; place _BAD when it is none."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while at < end and shift < np.uint64(64):
        byte = np.uint64(data[np.uint64(at)])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        if byte < np.uint64(128):
            return np.int64(value), at
        shift += np.uint64(7)
    return np.int64(0), _BAD


@compiled
def _next(data: Any, at: int, end: int, found: Any) -> bool:
    """Read the field at a place: number, wire type, value or length, where that begins, and where
    the next field does. False when there is none.
    """
    tag, at = _varint(data, at, end)
    if at < 0:
        return False
    found[0] = tag >> 3
    found[1] = tag & 7
    found[2] = 0
    found[3] = at
    if found[1] == 0:
        found[2], at = _varint(data, at, end)
    elif found[1] == 1:
        at += 8
    elif found[1] == 2:
        found[2], at = _varint(data, at, end)
        if at < 0 or found[2] < 0 or found[2] > end - at:
            return False
        found[3] = at
        at += found[2]
    elif found[1] == 5:
        at += 4
    else:
        return False
    found[4] = at
    return 0 <= at <= end


@inlined
def _same(data: Any, at: int, length: int, wanted: Any) -> bool:
    if length != len(wanted):
        return False
    differing = 0
    for place in range(length):
        differing |= data[at + place] ^ wanted[place]
    return differing == 0


@compiled
def _event_of(data: Any, start: int, end: int, field: Any) -> bool:
    """Find the one usage event of a leaf; field[3] and field[4] are its bounds."""
    at: Any = start + HEADER_BYTES + (np.int64(data[start + 20]) << 8 | np.int64(data[start + 21]))
    first = 0
    last = 0
    times = 0
    while at < end:
        if not _next(data, at, end, field):
            return False
        at = field[4]
        if field[0] >= _USAGE_EVENT:
            times += 1
            first, last = field[3], field[4]
            if field[0] != _USAGE_EVENT or field[1] != 2:
                return False
    field[3], field[4] = first, last
    return times == 1


@compiled
def _time_of(data: Any, at: int, end: int, field: Any) -> int:
    """Nanoseconds since 1970 of a Timestamp written the ordinary way; _BAD for any other."""
    seconds = 0
    nanos = 0
    while at < end:
        if not _next(data, at, end, field) or field[1] != 0:
            return _BAD
        at = field[4]
        if field[0] == 1:
            seconds = field[2]
        elif field[0] == 2:
            nanos = field[2]
        else:
            return _BAD
    if not 0 <= seconds <= MAX_NANOSECONDS_S or not 0 <= nanos < _NANOS:
        return _BAD
    return seconds * _NANOS + nanos


@compiled
def _match(
    data: Any, start: int, end: int, account: Any, model: Any, low: int, high: int, field: Any
) -> int:
    """Whether the leaf's event meets the conditions. An empty name, and 0 for `high`, ask for
    nothing.
    """
    if not _event_of(data, start, end, field):
        return UNSURE
    at, end = field[3], field[4]
    is_account = len(account) == 0
    is_model = len(model) == 0
    time_at = 0
    time_end = 0
    times = 0
    while at < end:
        if not _next(data, at, end, field):
            return UNSURE
        at = field[4]
        if field[1] != 2:
            continue
        # Of a text that is written twice the last one counts.
        if field[0] == _ACCOUNT and len(account):
            is_account = _same(data, field[3], field[2], account)
        elif field[0] == _MODEL and len(model):
            is_model = _same(data, field[3], field[2], model)
        elif field[0] == _TIME:
            times += 1
            time_at, time_end = field[3], field[4]
    if not is_account or not is_model:
        return NO
    if high == 0:
        return YES
    if times != 1:
        return UNSURE
    instant = _time_of(data, time_at, time_end, field)
    if instant < 0:
        return UNSURE
    return YES if low <= instant < high else NO


@compiled
def match(
    data: Any,
    starts: Any,
    ends: Any,
    dispositions: Any,
    account: Any,
    model: Any,
    low: int,
    high: int,
    out: Any,
) -> None:
    """YES, NO or UNSURE of each leaf. `dispositions[d]` says whether disposition d is wanted.

    Sure of an answer only for records that admission found usable; of the others the plain twin
    in matching.py judges.
    """
    field = np.zeros(5, np.int64)
    about_event = len(account) > 0 or len(model) > 0 or high != 0
    for index in range(len(starts)):
        start = starts[index]
        disposition = data[start + 2]
        if disposition >= len(dispositions) or not dispositions[disposition]:
            out[index] = NO
        elif not about_event:
            out[index] = YES
        elif disposition == _REJECTED or data[start + 1] != 0:
            out[index] = UNSURE
        else:
            out[index] = _match(data, start, ends[index], account, model, low, high, field)


@compiled
def _locate(data: Any, start: int, end: int, field: Any, found: Any) -> int:
    """Find account, model and time of a leaf's event; see `locate`."""
    if not _event_of(data, start, end, field):
        return UNSURE
    at, end = field[3], field[4]
    found[:4] = 0
    found[4] = NO_TIME
    while at < end:
        if not _next(data, at, end, field):
            return UNSURE
        at = field[4]
        if field[1] != 2:
            continue
        # Of a text that is written twice the last one counts.
        if field[0] == _ACCOUNT:
            found[0], found[1] = field[3], field[3] + field[2]
        elif field[0] == _MODEL:
            found[2], found[3] = field[3], field[3] + field[2]
        elif field[0] == _TIME:
            if found[4] != NO_TIME:
                return UNSURE
            time_at, time_end = field[3], field[4]
            found[4] = _time_of(data, time_at, time_end, field)
            if found[4] < 0:
                return UNSURE
    return YES


@compiled
def locate(data: Any, starts: Any, ends: Any, found: Any, sure: Any) -> None:
    """Find what stands in each leaf's event: rows of `found` are the first and last place of the
    account id, those of the served model, and the time in ns since 1970 or NO_TIME.

    Where `sure` becomes False the plain twin in described.py must look.
    """
    field = np.zeros(5, np.int64)
    for index in range(len(starts)):
        start = starts[index]
        usable = data[start + 2] != _REJECTED and data[start + 1] == 0
        sure[index] = usable and _locate(data, start, ends[index], field, found[index]) == YES
