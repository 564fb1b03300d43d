"""Record batches of entries as Arrow IPC messages, written where they are sent from.

pyarrow writes a batch from buffers of its own into a new one, and what is sent is a copy of that.
Here only the message's metadata are pyarrow's, as it wrote them once for a batch of one row;
the numbers in it are set anew for each batch, and the columns are written straight behind it.

Sources: the Arrow columnar format ("Encapsulated message format", "RecordBatch message"),
Message.fbs for the tables' fields, FlatBuffers' internals for where a field stands.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from ledger.domain.columns import Bytes, Numbers
from ledger.domain.compiled import reading
from ledger.domain.leafrun import LeafRun

SCHEMA: Final = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),
        pa.field("control_size", pa.int64(), nullable=False),
        pa.field("leaf", pa.binary(), nullable=False),
    ]
)

_PREFIX: Final = 8
"""Continuation marker and length of the metadata."""
_ALIGNMENT: Final = 8
_MESSAGE_HEADER, _MESSAGE_BODY_LENGTH = 2, 3
_BATCH_LENGTH, _BATCH_NODES, _BATCH_BUFFERS = 0, 1, 2


class _Template(NamedTuple):
    """The metadata of a batch with one row, and where its numbers stand."""

    data: bytes
    body_length: int
    length: int
    nodes: int
    buffers: int


def _template() -> _Template:
    row = pa.RecordBatch.from_pydict({"position": [1], "control_size": [1], "leaf": [b"x"]}, SCHEMA)
    written = row.serialize().to_pybytes()
    (metadata,) = struct.unpack_from("<i", written, 4)
    data = written[: _PREFIX + metadata]

    def reference(at: int) -> int:
        (offset,) = struct.unpack_from("<I", data, at)
        return at + int(offset)

    def field(table: int, number: int) -> int:
        (back,) = struct.unpack_from("<i", data, table)
        (offset,) = struct.unpack_from("<H", data, table - back + 4 + 2 * number)
        if not offset:
            raise AssertionError("pyarrow wrote a message without a field that every batch has")
        return table + int(offset)

    def vector(at: int) -> int:
        return reference(at) + 4

    message = reference(_PREFIX)
    batch = reference(field(message, _MESSAGE_HEADER))
    return _Template(
        data,
        field(message, _MESSAGE_BODY_LENGTH),
        field(batch, _BATCH_LENGTH),
        vector(field(batch, _BATCH_NODES)),
        vector(field(batch, _BATCH_BUFFERS)),
    )


_TEMPLATE: Final = _template()


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def batch_size(rows: int, leaf_bytes: int) -> int:
    """Bytes of the message of a batch."""
    body = 2 * 8 * rows + _padded(4 * (rows + 1)) + _padded(leaf_bytes)
    return len(_TEMPLATE.data) + body


def write_batch(
    run: LeafRun, chosen: Numbers, control_size: int, leaf_bytes: int, out: Bytes
) -> None:
    """Write the message of a batch of the chosen leaves of a run.

    `leaf_bytes`: how long they are together. `out` is as long as `batch_size` says.
    """
    rows = len(chosen)
    sizes = (0, 8 * rows, 0, 8 * rows, 0, 4 * (rows + 1), leaf_bytes)
    metadata = bytearray(_TEMPLATE.data)
    at = 0
    for number, size in enumerate(sizes):
        struct.pack_into("<qq", metadata, _TEMPLATE.buffers + 16 * number, at, size)
        at += _padded(size)
    for number in range(len(SCHEMA)):
        struct.pack_into("<qq", metadata, _TEMPLATE.nodes + 16 * number, rows, 0)
    struct.pack_into("<q", metadata, _TEMPLATE.length, rows)
    struct.pack_into("<q", metadata, _TEMPLATE.body_length, at)
    out[: len(metadata)] = np.frombuffer(metadata, dtype=np.uint8)

    body = out[len(metadata) :]
    offsets = np.empty(rows + 1, dtype=np.int32)
    leaves_at = 16 * rows + _padded(offsets.nbytes)
    leaves = body[leaves_at : leaves_at + leaf_bytes]
    reading.write_binary(run.data, run.starts, run.ends, chosen, offsets, leaves)
    body[: 8 * rows] = (chosen + run.first).astype("<i8").view(np.uint8)
    body[8 * rows : 16 * rows] = np.full(rows, control_size, dtype="<i8").view(np.uint8)
    body[16 * rows : 16 * rows + offsets.nbytes] = offsets.view(np.uint8)
    # What pads is zeros, not what stood in memory before.
    body[16 * rows + offsets.nbytes : leaves_at] = 0
    body[leaves_at + leaf_bytes :] = 0
