"""Adding up usage leaves in their bytes: compiled, and for plain leaves alone.

A leaf is plain when its record is a usage event written the ordinary way:
fields in order of number, each at most once, texts in ASCII, nothing unknown,
counts within the contract. What is not plain is marked ODD and left to
batch.py, which reads it by protobuf. So this code may be too strict, which
costs time, and must never be too lenient: a property test holds every answer
against batch.py's own.

Importing this takes seconds, since the loops are compiled (once, and kept on
disk). tally.py imports it when it is asked to.

Sources: protobuf's encoding (varints, tags, length-delimited fields) and
kernel/leaf.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from kernel import leaf as leaves
from kernel import varint as varints
from kernel.jit import compiler
from kernel.varint import varint
from pricing.domain.events import MAX_QUANTITY
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.usage.v1 import usage_pb2 as usage

_compiled: Final = compiler(
    (
        Path(__file__),
        Path(leaves.__file__),
        Path(varints.__file__),
        Path(__file__).with_name("events.py"),
    ),
    usage.DESCRIPTOR.serialized_pb + ledger.DESCRIPTOR.serialized_pb,
)

# What became of a leaf.
SKIPPED: Final = 0
PLAIN: Final = 1
ODD: Final = 2

# Columns of `texts`: place and length of each.
EVENT_ID: Final = 0
ACCOUNT_ID: Final = 2
SERVED_MODEL: Final = 4
BASE_MODEL: Final = 6
ADAPTER: Final = 8
SERVICE_TIER: Final = 10
REGION: Final = 12
ENGINE_ID: Final = 14
PROJECT_ID: Final = 16
KEY_ID: Final = 18
TRACE_ID: Final = 20
SPAN_ID: Final = 22
TEXT_COLUMNS: Final = 24

# Columns of `numbers`.
OUTCOME: Final = 0
SECONDS: Final = 1
NANOS: Final = 2
CONTEXT: Final = 3
"""Length of the context: all tokens that went in."""
SEGMENT: Final = 4
"""Of time, and BAND of context lengths: within both no price changes. Set by the caller."""
BAND: Final = 5
NUMBER_COLUMNS: Final = 6

# Columns of `quantities`: six dimensions, place and length of the attribute, the counts, and the
# event they are of, as an index in its stretch.
UNIT: Final = 0
ATTRIBUTE: Final = 6
AMOUNT: Final = 8
UNDELIVERED: Final = 9
OWNER: Final = 10
QUANTITY_COLUMNS: Final = 11

# Columns of `groups`: what is of all its events, and how many they are.
GROUP_OUTCOME: Final = 0
GROUP_SEGMENT: Final = 1
GROUP_BAND: Final = 2
GROUP_SAMPLE: Final = 3
"""Index of the first of its events."""
GROUP_REQUESTS: Final = 4
GROUP_COLUMNS: Final = 5

# Columns of `cells`: the group, the dimensions in one number, place and length of the attribute,
# and the sums.
CELL_GROUP: Final = 0
CELL_KINDS: Final = 1
CELL_ATTRIBUTE: Final = 2
CELL_AMOUNT: Final = 4
CELL_UNDELIVERED: Final = 5
CELL_FIRST: Final = 6
"""Index of the first event with one, and CELL_END: the index after the last."""
CELL_END: Final = 7
CELL_COLUMNS: Final = 8

MAX_QUANTITIES: Final = 64
"""Of a plain event."""

_VARINT: Final = 0
_LENGTH: Final = 2
_MAX_SECONDS: Final = 253_402_300_799
_MAX_NANOS: Final = 999_999_999
_MAX_WORD: Final = 15
_ACCEPTED: Final = int(ledger.DISPOSITION_ACCEPTED)
_VERSION: Final = leaves.VERSION
_HEADER_BYTES: Final = leaves.HEADER_BYTES
_MAX_LEAF_BYTES: Final = leaves.MAX_LEAF_BYTES
_MAX_AMOUNT: Final = MAX_QUANTITY
_TOKEN: Final = int(usage.UNIT_TOKEN)
_IN: Final = int(usage.DIRECTION_IN)

_FIELDS: Final = usage.UsageEvent.DESCRIPTOR.fields_by_name
_UNREAD: Final = -2
_NO_TEXT: Final = -1
# Where each text of UsageEvent goes, by its field's number.
_TEXT_COLUMN: Final = np.full(32, _NO_TEXT, dtype=np.int64)
for _name, _column in {
    "event_id": EVENT_ID,
    "account_id": ACCOUNT_ID,
    "project_id": PROJECT_ID,
    "key_id": KEY_ID,
    "hold_id": _UNREAD,
    "served_model": SERVED_MODEL,
    "base_model": BASE_MODEL,
    "adapter": ADAPTER,
    "service_tier": SERVICE_TIER,
    "region": REGION,
    "engine_id": ENGINE_ID,
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


@_compiled
def _is_ascii(data: Any, at: int, length: int) -> bool:
    bad = False
    for place in range(at, at + length):
        bad |= data[place] > 127
    return not bad


@_compiled
def _instant(data: Any, at: int, end: int, into: Any) -> bool:
    """Read a Timestamp: seconds and nanoseconds into `into`."""
    last = 0
    while at < end:
        tag: Any = np.int64(data[at])
        at += 1
        number = tag >> 3
        if tag & 7 != _VARINT or number <= last or number > 2:
            return False
        last = number
        value, at = varint(data, at, end)
        if at < 0 or value > (_MAX_SECONDS if number == 1 else _MAX_NANOS):
            return False
        into[number - 1] = value
    return True


@_compiled
def _digests(data: Any, at: int, end: int) -> bool:
    """Whether this is a Provenance."""
    last = 0
    while at < end:
        tag: Any = np.int64(data[at])
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


@_compiled
def _quantity(data: Any, at: int, end: int, row: Any) -> bool:
    """Read a Quantity into a row of `quantities`."""
    for column in range(QUANTITY_COLUMNS):
        row[column] = 0
    last = 0
    while at < end:
        tag: Any = np.int64(data[at])
        at += 1
        number = tag >> 3
        if number <= last or number > 9:
            return False
        last = number
        value, at = varint(data, at, end)
        if at < 0:
            return False
        if number == 7:
            if tag & 7 != _LENGTH or value > end - at or not _is_ascii(data, at, value):
                return False
            row[ATTRIBUTE] = at
            row[ATTRIBUTE + 1] = value
            at += value
        elif tag & 7 != _VARINT:
            return False
        elif number < 7:
            if value > _MAX_WORD:
                return False
            row[UNIT + number - 1] = value
        elif number == 8:
            row[AMOUNT] = value
        else:
            row[UNDELIVERED] = value
    return bool(row[UNDELIVERED] <= row[AMOUNT] <= _MAX_AMOUNT)


@_compiled
def _event(
    data: Any, at: int, end: int, texts: Any, numbers: Any, quantities: Any, first: int
) -> int:
    """Read a UsageEvent; gives how many quantities it has, or -1 when it is not plain."""
    spare = np.zeros(2, dtype=np.int64)
    last = 0
    count = 0
    while at < end:
        tag: Any = np.int64(data[at])
        at += 1
        if tag > 127:
            # Numbers 16 to 31 take a second byte.
            if at >= end or data[at] != 1:
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
                if value > _MAX_WORD:
                    return -1
                numbers[OUTCOME] = value
            elif number not in (_FINISH_REASON, _CHOICE_COUNT):
                return -1
        elif tag & 7 == _LENGTH:
            if value > end - at:
                return -1
            column = _TEXT_COLUMN[number]
            if column != _NO_TEXT:
                if not _is_ascii(data, at, value):
                    return -1
                if column >= 0:
                    texts[column] = at
                    texts[column + 1] = value
            elif number == _QUANTITIES:
                if count == MAX_QUANTITIES or first + count == len(quantities):
                    return -1
                row = quantities[first + count]
                if not _quantity(data, at, at + value, row):
                    return -1
                if row[UNIT] == _TOKEN and row[UNIT + 1] == _IN:
                    numbers[CONTEXT] += row[AMOUNT]
                count += 1
            elif number == _EVENT_TIME:
                if not _instant(data, at, at + value, numbers[SECONDS : NANOS + 1]):
                    return -1
            elif number in (_FIRST_TOKEN_TIME, _END_TIME):
                if not _instant(data, at, at + value, spare):
                    return -1
            elif number == _PROVENANCE:
                if not _digests(data, at, at + value):
                    return -1
            elif number != _OUTPUT_DIGEST:
                return -1
            at += value
        else:
            return -1
    return count if texts[ACCOUNT_ID + 1] > 0 else -1


@_compiled
def _record(
    data: Any, at: int, end: int, texts: Any, numbers: Any, quantities: Any, first: int
) -> int:
    """Read a UsageRecord that holds a usage event; as `_event`."""
    last = 0
    body = -1
    body_end = -1
    while at < end:
        tag: Any = np.int64(data[at])
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
            if not _is_ascii(data, at, value):
                return -1
        elif number == 5:
            body = at
            body_end = at + value
        else:
            column = TRACE_ID if number == 3 else SPAN_ID
            texts[column] = at
            texts[column + 1] = value
        at += value
    if body < 0:
        return -1
    return int(_event(data, body, body_end, texts, numbers, quantities, first))


@_compiled
def _same_bytes(data: Any, a: Any, b: Any, length: int) -> bool:
    same = True
    # Unsigned, so that no index is tested for being negative: the loop becomes vector moves.
    one, other = np.uint64(a), np.uint64(b)
    for place in range(np.uint64(length)):
        same &= data[one + place] == data[other + place]
    return bool(same)


@_compiled
def _mix(state: Any, value: Any) -> Any:
    # Equal hashes mean nothing: whoever finds one compares the bytes.
    mixed = (state ^ np.uint64(value)) * np.uint64(0x9E37_79B9_7F4A_7C15)
    return mixed ^ (mixed >> np.uint64(29))


@_compiled
def _word(data: Any, at: Any) -> Any:
    """Eight bytes as one number: the compiler makes one load of it."""
    value = np.uint64(0)
    for byte in range(8):
        value |= np.uint64(data[at + np.uint64(byte)]) << np.uint64(8 * byte)
    return value


@_compiled
def _hash_text(data: Any, state: Any, start: Any, length: int) -> Any:
    at = np.uint64(start)
    left = length
    while left >= 8:
        state = _mix(state, _word(data, at))
        at += np.uint64(8)
        left -= 8
    rest = np.uint64(left)
    for byte in range(left):
        rest = (rest << np.uint64(8)) | np.uint64(data[at + np.uint64(byte)])
    return _mix(state, rest)


@_compiled
def _group_place(
    data: Any,
    texts_end: int,
    texts: Any,
    index: int,
    outcome: int,
    segment: int,
    band: int,
    table: Any,
) -> Any:
    """Where to look for a group first."""
    state = _mix(_mix(_mix(np.uint64(1), outcome), segment), band)
    for column in range(ACCOUNT_ID, texts_end, 2):
        state = _hash_text(data, state, texts[index, column], texts[index, column + 1])
    return (state ^ (state >> np.uint64(32))) & np.uint64(len(table) - 1)


@_compiled
def _cell_place(data: Any, group: Any, kinds: Any, attribute: Any, length: Any, table: Any) -> Any:
    """Where to look for a cell first."""
    state = _mix(_mix(np.uint64(1), group), kinds)
    if length:
        state = _hash_text(data, state, attribute, length)
    return (state ^ (state >> np.uint64(32))) & np.uint64(len(table) - 1)


@_compiled
def enter_groups(
    data: Any, texts_end: int, table: Any, group_texts: Any, groups: Any, count: int
) -> None:
    """Enter groups into another, empty, table."""
    for group in range(count):
        place = _group_place(
            data,
            texts_end,
            group_texts,
            group,
            groups[group, GROUP_OUTCOME],
            groups[group, GROUP_SEGMENT],
            groups[group, GROUP_BAND],
            table,
        )
        while table[place] >= 0:
            place = (place + np.uint64(1)) & np.uint64(len(table) - 1)
        table[place] = group


@_compiled
def enter_cells(data: Any, table: Any, cells: Any, count: int) -> None:
    """Enter cells into another, empty, table."""
    for cell in range(count):
        place = _cell_place(
            data,
            cells[cell, CELL_GROUP],
            cells[cell, CELL_KINDS],
            cells[cell, CELL_ATTRIBUTE],
            cells[cell, CELL_ATTRIBUTE + 1],
            table,
        )
        while table[place] >= 0:
            place = (place + np.uint64(1)) & np.uint64(len(table) - 1)
        table[place] = cell


@_compiled
def _group_of(
    data: Any,
    texts_end: int,
    texts: Any,
    numbers: Any,
    index: int,
    table: Any,
    group_texts: Any,
    groups: Any,
    count: int,
) -> int:
    """The group that an event of a stretch belongs to; `count`, entered, when it is a new one."""
    outcome, segment, band = numbers[index, OUTCOME], numbers[index, SEGMENT], numbers[index, BAND]
    place = _group_place(data, texts_end, texts, index, outcome, segment, band, table)
    mask = np.uint64(len(table) - 1)
    while table[place] >= 0:
        found = table[place]
        same = (
            groups[found, GROUP_OUTCOME] == outcome
            and groups[found, GROUP_SEGMENT] == segment
            and groups[found, GROUP_BAND] == band
        )
        for column in range(ACCOUNT_ID, texts_end, 2):
            if not same:
                break
            length = texts[index, column + 1]
            same = length == group_texts[found, column + 1] and _same_bytes(
                data, texts[index, column], group_texts[found, column], length
            )
        if same:
            return int(found)
        place = (place + np.uint64(1)) & mask
    table[place] = count
    for column in range(TEXT_COLUMNS):
        group_texts[count, column] = texts[index, column]
    groups[count, GROUP_OUTCOME] = outcome
    groups[count, GROUP_SEGMENT] = segment
    groups[count, GROUP_BAND] = band
    return count


@_compiled
def _cell_of(
    data: Any, quantities: Any, index: int, group: int, table: Any, cells: Any, count: int
) -> int:
    """The cell (a group's kind of leaf) that a quantity is of; `count`, entered, for a new one."""
    attribute, length = quantities[index, ATTRIBUTE], quantities[index, ATTRIBUTE + 1]
    kinds = np.int64(0)
    for column in range(UNIT, ATTRIBUTE):
        # Each is at most _MAX_WORD, four bits.
        kinds = (kinds << 4) | quantities[index, column]
    place = _cell_place(data, group, kinds, attribute, length, table)
    mask = np.uint64(len(table) - 1)
    while table[place] >= 0:
        found = table[place]
        if (
            cells[found, CELL_GROUP] == group
            and cells[found, CELL_KINDS] == kinds
            and cells[found, CELL_ATTRIBUTE + 1] == length
            and _same_bytes(data, attribute, cells[found, CELL_ATTRIBUTE], length)
        ):
            return int(found)
        place = (place + np.uint64(1)) & mask
    table[place] = count
    cells[count, CELL_GROUP] = group
    cells[count, CELL_KINDS] = kinds
    cells[count, CELL_ATTRIBUTE] = attribute
    cells[count, CELL_ATTRIBUTE + 1] = length
    return count


@_compiled
def scan(
    data: Any, starts: Any, first: int, status: Any, texts: Any, numbers: Any, quantities: Any
) -> int:
    """Read a stretch of leaves, from `first` on and as many as `status` is long.

    Gives each one's status, and if it is plain its row and quantities; how many these are.
    """
    used = 0
    for index in range(len(status)):
        at, end = starts[first + index], starts[first + index + 1]
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
        count = _record(data, value_at, end, texts[index], numbers[index], quantities, used)
        if count < 0:
            continue
        status[index] = PLAIN
        for number in range(used, used + count):
            quantities[number, OWNER] = index
        used += count
    return used


@_compiled
def add_up(
    data: Any,
    first: int,
    status: Any,
    texts: Any,
    numbers: Any,
    quantities: Any,
    texts_end: int,
    group_table: Any,
    group_texts: Any,
    groups: Any,
    cell_table: Any,
    cells: Any,
    counts: Any,
    group_of: Any,
    cell_of: Any,
) -> None:
    """Sort a stretch that `scan` read into groups and cells, and add its counts up.

    `texts_end` is the column before which texts tell groups apart. `counts` has
    how many groups and cells there are. Gives each event's group,
    and each quantity's cell: -1 where its count is 0.
    """
    for index in range(len(status)):
        if status[index] != PLAIN:
            continue
        group = _group_of(
            data, texts_end, texts, numbers, index, group_table, group_texts, groups, counts[0]
        )
        if group == counts[0]:
            groups[group, GROUP_SAMPLE] = first + index
            groups[group, GROUP_REQUESTS] = 0
            counts[0] += 1
        groups[group, GROUP_REQUESTS] += 1
        group_of[index] = group
    for index in range(len(quantities)):
        cell_of[index] = -1
        if quantities[index, AMOUNT] == 0:
            continue
        owner = quantities[index, OWNER]
        cell = _cell_of(data, quantities, index, group_of[owner], cell_table, cells, counts[1])
        if cell == counts[1]:
            cells[cell, CELL_AMOUNT] = 0
            cells[cell, CELL_UNDELIVERED] = 0
            cells[cell, CELL_FIRST] = first + owner
            counts[1] += 1
        cells[cell, CELL_AMOUNT] += quantities[index, AMOUNT]
        cells[cell, CELL_UNDELIVERED] += quantities[index, UNDELIVERED]
        cells[cell, CELL_END] = first + owner + 1
        cell_of[index] = cell
