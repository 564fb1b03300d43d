"""Kafka's record batches as columns: magic 2, uncompressed, gzip, snappy, lz4 and zstd.

Reads what a Fetch answers with: whole batches, the first of which may begin
before the offset that was asked for, and perhaps a cut one at the end.

Source: the Apache Kafka protocol guide, "Record Batch" and "Record".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from aiokafka import codec
from aiokafka.record.util import calc_crc32c

from kernel.jit import inlined
from ledger.domain.columns import ABSENT, Columns, joined
from ledger.domain.compiled.jit import compiled

MAX_BATCH_BYTES: Final = 64 * 1024 * 1024
"""Largest batch that is read, unpacked: beyond it a compressed one may be a bomb."""

_FRAME: Final = struct.Struct(">qi")
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_CRC_FROM: Final = 21
_MAGIC: Final = 2
_CODEC_MASK: Final = 0x07
_LOG_APPEND_TIME: Final = 0x08
_CONTROL: Final = 0x20
_BAD: Final = -1
_SMALLEST_RECORD: Final = 7  # length, attributes, two deltas, no key, no value, no headers

_UNPACK: Final[dict[int, Callable[[Any], bytes]]] = {
    1: codec.gzip_decode,
    2: codec.snappy_decode,
    3: codec.lz4_decode,
    4: codec.zstd_decode,
}


class RecordsError(ValueError):
    """Bytes that are not the record batches they should be."""


class Decoded(NamedTuple):
    """Records from an offset on, and the offset after all that was read."""

    columns: Columns
    next_offset: int


@inlined
def _zigzag(data: Any, at: int, end: int) -> tuple[Any, int]:
    """(value, place after it) of a signed varint; place _BAD when it is none."""
    raw = np.uint64(0)
    shift = np.uint64(0)
    while at < end and shift < np.uint64(64):
        byte = np.uint64(data[np.uint64(at)])
        at += 1
        raw |= (byte & np.uint64(127)) << shift
        if byte < np.uint64(128):
            value = np.int64(raw >> np.uint64(1)) ^ -np.int64(raw & np.uint64(1))
            return value, at
        shift += np.uint64(7)
    return np.int64(0), _BAD


@compiled
def _read_records(
    data: Any,
    at: int,
    end: int,
    base_offset: int,
    base_timestamp: int,
    columns: Any,
) -> bool:
    """Fill a row of `columns` for each record; False when the bytes are not that many records.

    Columns: offset, timestamp, key's place and length, value's place and length.
    """
    for index in range(columns.shape[1]):
        length, at = _zigzag(data, at, end)
        if at < 0 or length < 1 or length > end - at:
            return False
        record_end = at + length
        at += 1  # attributes: none are in use
        timestamp, at = _zigzag(data, at, record_end)
        if at < 0:
            return False
        offset, at = _zigzag(data, at, record_end)
        if at < 0:
            return False
        columns[0, index] = base_offset + offset
        columns[1, index] = base_timestamp + timestamp
        for part in range(2, 6, 2):
            length, at = _zigzag(data, at, record_end)
            if at < 0 or length > record_end - at:
                return False
            columns[part, index] = at
            columns[part + 1, index] = length if length >= 0 else ABSENT
            at += max(length, 0)
        at = record_end  # headers are not part of a leaf
    return at == end


def decode(data: bytes, offset: int) -> Decoded:
    """Records at `offset` and after it, out of a Fetch's answer.

    Errors: RecordsError on a checksum, a format or a length that is wrong.
    """
    whole = np.frombuffer(data, dtype=np.uint8)
    parts: list[Columns] = []
    next_offset = offset
    at = 0
    while at + _HEADER.size <= len(data):
        _, length = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + length
        if end > len(data):
            break  # a batch that the answer cut off; the next fetch brings it whole
        batch, batch_end = _batch(data, whole, at, end)
        if batch is not None:
            parts.append(batch)
        next_offset = max(next_offset, batch_end)
        at = end
    columns = _from(offset, _together(whole, parts))
    if not np.all(columns.offset[1:] > columns.offset[:-1]):
        raise RecordsError(f"the records from offset {offset} on are out of order")
    return Decoded(columns, next_offset)


def _batch(data: bytes, whole: Any, at: int, end: int) -> tuple[Columns | None, int]:
    """Records of the batch in data[at:end] and the offset after it; None for markers."""
    (
        base_offset,
        _length,
        _leader_epoch,
        magic,
        crc,
        attributes,
        last_delta,
        base_timestamp,
        max_timestamp,
        *_producer,
        count,
    ) = _HEADER.unpack_from(data, at)
    if magic != _MAGIC:
        raise RecordsError(f"the batch at offset {base_offset} has message format {magic}, not 2")
    if calc_crc32c(memoryview(data)[at + _CRC_FROM : end]) != crc:
        raise RecordsError(f"the batch at offset {base_offset} fails its checksum")
    after = base_offset + last_delta + 1
    if attributes & _CONTROL:
        return None, after
    payload, first, last = whole, at + _HEADER.size, end
    kind = attributes & _CODEC_MASK
    if kind:
        payload = _unpacked(kind, memoryview(data)[first:last], base_offset)
        first, last = 0, len(payload)
    if not 0 <= count <= (last - first) // _SMALLEST_RECORD:
        raise RecordsError(f"the batch at offset {base_offset} claims {count} records")
    columns = np.empty((6, count), dtype=np.int64)
    if not _read_records(payload, first, last, base_offset, base_timestamp, columns):
        raise RecordsError(f"the batch at offset {base_offset} does not hold {count} records")
    if attributes & _LOG_APPEND_TIME:
        columns[1] = max_timestamp
    return Columns(payload, *columns), after


def _unpacked(kind: int, data: memoryview, base_offset: int) -> Any:
    unpack = _UNPACK.get(kind)
    if unpack is None:
        raise RecordsError(f"the batch at offset {base_offset} has an unknown compression {kind}")
    try:
        payload = unpack(bytes(data))
    except Exception as error:  # each codec has errors of its own
        raise RecordsError(f"the batch at offset {base_offset} does not unpack: {error}") from None
    if len(payload) > MAX_BATCH_BYTES:
        raise RecordsError(
            f"the batch at offset {base_offset} unpacks to {len(payload)} bytes, more than"
            f" {MAX_BATCH_BYTES}"
        )
    return np.frombuffer(payload, dtype=np.uint8)


def _together(whole: Any, parts: list[Columns]) -> Columns:
    if not parts:
        return Columns(whole, *np.empty((6, 0), dtype=np.int64))
    if all(part.data is whole for part in parts):
        # Uncompressed batches lie in the answer itself: only the columns are joined.
        return Columns(
            whole,
            *(np.concatenate(column) for column in zip(*(part[1:] for part in parts), strict=True)),
        )
    return joined(parts)


def _from(offset: int, columns: Columns) -> Columns:
    """Without the records before `offset`."""
    first = int(np.searchsorted(columns.offset, offset))
    return columns.part(first, len(columns)) if first else columns
