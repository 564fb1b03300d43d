"""Reading plain leaves out of their bytes.

Sources: protobuf's encoding (varints, tags, length-delimited fields) and
kernel/leaf.py.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from kernel import leaf as leaves
from kernel.jit import inlined
from kernel.varint import varint
from pricing.domain.compiled import columns as at_column
from pricing.domain.compiled.columns import (
    ACCOUNT_ID,
    AMOUNT,
    ATTRIBUTE,
    CONTEXT,
    DIMENSION_BITS,
    DIMENSIONS,
    KINDS,
    MAX_QUANTITIES,
    MAX_WORD,
    NUMBER_COLUMNS,
    ODD,
    OUTCOME,
    OWNER,
    PLAIN,
    SECONDS,
    SKIPPED,
    SPAN_ID,
    SPARE,
    TEXT_COLUMNS,
    TRACE_ID,
    UNDELIVERED,
)
from pricing.domain.compiled.jit import compiled, is_ascii
from pricing.domain.events import MAX_QUANTITY
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.usage.v1 import usage_pb2 as usage

_VARINT: Final = 0
_LENGTH: Final = 2
_MAX_SECONDS: Final = 253_402_300_799
_MAX_NANOS: Final = 999_999_999
_ACCEPTED: Final = int(ledger.DISPOSITION_ACCEPTED)
_VERSION: Final = leaves.VERSION
_HEADER_BYTES: Final = leaves.HEADER_BYTES
_MAX_LEAF_BYTES: Final = leaves.MAX_LEAF_BYTES
_MAX_AMOUNT: Final = MAX_QUANTITY
_TOKEN: Final = int(usage.UNIT_TOKEN)
_IN: Final = int(usage.DIRECTION_IN)
_UNIT_SHIFT: Final = DIMENSION_BITS * (DIMENSIONS - 1)
_DIRECTION_SHIFT: Final = DIMENSION_BITS * (DIMENSIONS - 2)
_TOKEN_IN: Final = _TOKEN << DIMENSION_BITS | _IN

_FIELDS: Final = usage.UsageEvent.DESCRIPTOR.fields_by_name
_UNREAD: Final = -2
_NO_TEXT: Final = -1
# Where each text of UsageEvent goes, by its field's number.
_TEXT_COLUMN: Final = np.full(32, _NO_TEXT, dtype=np.int64)
for _name, _column in {
    "event_id": at_column.EVENT_ID,
    "account_id": at_column.ACCOUNT_ID,
    "project_id": at_column.PROJECT_ID,
    "key_id": at_column.KEY_ID,
    "hold_id": _UNREAD,
    "served_model": at_column.SERVED_MODEL,
    "base_model": at_column.BASE_MODEL,
    "adapter": at_column.ADAPTER,
    "service_tier": at_column.SERVICE_TIER,
    "region": at_column.REGION,
    "engine_id": at_column.ENGINE_ID,
}.items():
    _TEXT_COLUMN[_FIELDS[_name].number] = _column

_PROVENANCE: Final = _FIELDS["provenance"].number
_QUANTITIES: Final = _FIELDS["quantities"].number
_OUTCOME: Final = _FIELDS["outcome"].number
_FINISH_REASON: Final = _FIELDS["finish_reason"].number
_EVENT_TIME: Final = _FIELDS["event_time"].number
_FIRST_TOKEN_TIME: Final = _FIELDS["first_token_time"].number
_END_TIME: Final = _FIELDS["end_time"].number
_OUTPUT_DIGEST: Final = _FIELDS["output_digest"].number
_CHOICE_COUNT: Final = _FIELDS["choice_count"].number


@inlined
def _instant(data: Any, at: int, end: int, numbers: Any, index: int, column: int) -> bool:
    """Read a Timestamp: seconds and nanoseconds into a column of `numbers` and the next."""
    last = 0
    while at < end:
        tag: Any = np.int64(data[np.uint64(at)])
        at += 1
        number = tag >> 3
        if tag & 7 != _VARINT or number <= last or number > 2:
            return False
        last = number
        value, at = varint(data, at, end)
        if at < 0 or value > (_MAX_SECONDS if number == 1 else _MAX_NANOS):
            return False
        numbers[index, column + number - 1] = value
    return True


@compiled
def _digests(data: Any, at: int, end: int) -> bool:
    """Whether this is a Provenance."""
    last = 0
    while at < end:
        tag: Any = np.int64(data[np.uint64(at)])
        at += 1
        number = tag >> 3
        if tag & 7 != _LENGTH or number <= last or number > 4:
            return False
        last = number
        length, at = varint(data, at, end)
        if at < 0 or length > end - at:
            return False
        at += length
    return True


@inlined
def _quantity(data: Any, at: int, end: int, quantities: Any, row: int) -> bool:
    """Read a Quantity into a row of `quantities`."""
    kinds = np.int64(0)
    amount = undelivered = attribute = length = 0
    last = 0
    while at < end:
        tag: Any = np.int64(data[np.uint64(at)])
        at += 1
        number = tag >> 3
        if number <= last or number > DIMENSIONS + 3:
            return False
        last = number
        value, at = varint(data, at, end)
        if at < 0:
            return False
        if number == DIMENSIONS + 1:
            if tag & 7 != _LENGTH or value > end - at or not is_ascii(data, at, value):
                return False
            attribute = at
            length = value
            at += value
        elif tag & 7 != _VARINT:
            return False
        elif number <= DIMENSIONS:
            if value > MAX_WORD:
                return False
            kinds |= value << (DIMENSION_BITS * (DIMENSIONS - number))
        elif number == DIMENSIONS + 2:
            amount = value
        else:
            undelivered = value
    quantities[row, KINDS] = kinds
    quantities[row, ATTRIBUTE] = attribute
    quantities[row, ATTRIBUTE + 1] = length
    quantities[row, AMOUNT] = amount
    quantities[row, UNDELIVERED] = undelivered
    return bool(undelivered <= amount <= _MAX_AMOUNT)


@inlined
def _event(
    data: Any, at: int, end: int, texts: Any, numbers: Any, index: int, quantities: Any, first: int
) -> int:
    """Read a UsageEvent; gives how many quantities it has, or -1 when it is not plain."""
    last = 0
    count = 0
    context = 0
    while at < end:
        tag: Any = np.int64(data[np.uint64(at)])
        at += 1
        if tag > 127:
            # Numbers 16 to 31 take a second byte.
            if at >= end or data[np.uint64(at)] != 1:
                return -1
            tag = (tag & 127) | 128
            at += 1
        number = tag >> 3
        if number < last or (number == last and number != _QUANTITIES):
            return -1
        last = number
        value, at = varint(data, at, end)
        if at < 0:
            return -1
        if tag & 7 == _VARINT:
            if number == _OUTCOME:
                if value > MAX_WORD:
                    return -1
                numbers[index, OUTCOME] = value
            elif number not in (_FINISH_REASON, _CHOICE_COUNT):
                return -1
        elif tag & 7 == _LENGTH:
            if value > end - at:
                return -1
            column = _TEXT_COLUMN[np.uint64(number)]
            if column != _NO_TEXT:
                if not is_ascii(data, at, value):
                    return -1
                if column >= 0:
                    texts[index, column] = at
                    texts[index, column + 1] = value
            elif number == _QUANTITIES:
                row = first + count
                if count == MAX_QUANTITIES or row == len(quantities):
                    return -1
                if not _quantity(data, at, at + value, quantities, row):
                    return -1
                if quantities[row, KINDS] >> _DIRECTION_SHIFT == _TOKEN_IN:
                    context += quantities[row, AMOUNT]
                quantities[row, OWNER] = index
                count += 1
            elif number == _EVENT_TIME:
                if not _instant(data, at, at + value, numbers, index, SECONDS):
                    return -1
            elif number in (_FIRST_TOKEN_TIME, _END_TIME):
                if not _instant(data, at, at + value, numbers, index, SPARE):
                    return -1
            elif number == _PROVENANCE:
                if not _digests(data, at, at + value):
                    return -1
            elif number != _OUTPUT_DIGEST:
                return -1
            at += value
        else:
            return -1
    numbers[index, CONTEXT] = context
    return count if texts[index, ACCOUNT_ID + 1] > 0 else -1


@inlined
def _record(
    data: Any, at: int, end: int, texts: Any, numbers: Any, index: int, quantities: Any, first: int
) -> int:
    """Read a UsageRecord that holds a usage event; as `_event`."""
    last = 0
    body = -1
    body_end = -1
    while at < end:
        tag: Any = np.int64(data[np.uint64(at)])
        at += 1
        number = tag >> 3
        # 6 and 7 are other bodies, and what comes after 7 is not known.
        if number <= last or number > 5:
            return -1
        last = number
        if tag & 7 != (_VARINT if number == 2 else _LENGTH):
            return -1
        value, at = varint(data, at, end)
        if at < 0:
            return -1
        if number == 2:
            continue
        if value > end - at:
            return -1
        if number == 1:
            if not is_ascii(data, at, value):
                return -1
        elif number == 5:
            body = at
            body_end = at + value
        else:
            column = TRACE_ID if number == 3 else SPAN_ID
            texts[index, column] = at
            texts[index, column + 1] = value
        at += value
    if body < 0:
        return -1
    return int(_event(data, body, body_end, texts, numbers, index, quantities, first))


@compiled
def scan(data: Any, starts: Any, status: Any, texts: Any, numbers: Any, quantities: Any) -> int:
    """Read a stretch of leaves, as many as `status` is long; they begin at `starts`.

    Gives each one's status, and if it is plain its row and quantities; how many these are.
    """
    used = 0
    for index in range(len(status)):
        at, end = starts[index], starts[index + 1]
        status[index] = ODD
        if end - at < _HEADER_BYTES or end - at > _MAX_LEAF_BYTES:
            continue
        key_bytes = (np.int64(data[at + 20]) << 8) | np.int64(data[at + 21])
        value_at = at + _HEADER_BYTES + key_bytes
        if data[at] != _VERSION or data[at + 1] != 0 or value_at > end:
            continue
        if data[at + 2] != _ACCEPTED:
            status[index] = SKIPPED
            continue
        for column in range(TEXT_COLUMNS):
            texts[index, column] = 0
        for column in range(NUMBER_COLUMNS):
            numbers[index, column] = 0
        count = _record(data, value_at, end, texts, numbers, index, quantities, used)
        if count < 0:
            continue
        status[index] = PLAIN
        used += count
    return used
