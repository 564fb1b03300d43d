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

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernel.jit import inlined
from kernel.sha256 import hash_slices
from kernel.varint import varint
from ledger.domain.columns import Bytes, Columns, Numbers
from ledger.domain.compiled.jit import compiled, copy
from ledger.domain.compiled.usage_event import LENGTH, VARINT, is_text, plain_event
from ledger.domain.scan import MAX_QUANTITIES, MAX_VALUE_BYTES


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
                good = tag & 7 == VARINT
                seq[index] = value
            elif tag & 7 != LENGTH or value > end - at:
                good = False
            else:
                if number == 1:
                    good = value <= 128 and is_text(data, at, value)
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
        plain[index] = plain_event(data, body_at, body_end, kinds, ids[index])


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
