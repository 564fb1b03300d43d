"""Verdicts over runs of plain records, and leaf bytes in the form of entry bundles.

The leaf's layout is kernel/leaf.py's, the bundle's kernel/tiles.py's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernel import leaf as leaf_format
from kernel.jit import inlined
from kernel.leaf import HEADER_BYTES, MAX_KEY_BYTES, VERSION
from ledger.domain.admission import ACCEPTED
from ledger.domain.columns import Bytes, Columns, Numbers
from ledger.domain.compiled.jit import compiled, copy

_LENGTH_BYTES = 2


@compiled
def accept_run(
    first: int, usual: Any, stream: Any, seq: Any, next_seq: Any, disposition: Any
) -> int:
    """Accept records from `first` on while each is usual and the next of its stream.

    Moves `next_seq` on; gives the first record that is not so, or the end.
    """
    for index in range(first, len(usual)):
        place = stream[index]
        if not usual[index] or seq[index] != next_seq[place]:
            return index
        next_seq[place] += 1
        disposition[index] = ACCEPTED
    return len(usual)


@inlined
def _put(out: Any, at: int, value: int, size: int) -> int:
    """Write an integer big-endian; gives the place after it."""
    for byte in range(size):
        out[at + byte] = np.uint8((value >> ((size - 1 - byte) * 8)) & 255)
    return at + size


@compiled
def _write(
    data: Any,
    offset: Any,
    timestamp_ms: Any,
    key_at: Any,
    key_length: Any,
    value_at: Any,
    value_length: Any,
    disposition: Any,
    reason: Any,
    ready_at: Any,
    ready_length: Any,
    ready: Any,
    out: Any,
    starts: Any,
    ends: Any,
) -> None:
    at = 0
    for index in range(len(offset)):
        start = at + _LENGTH_BYTES
        place = start
        if ready_length[index]:
            place = copy(out, place, ready, ready_at[index], ready_length[index])
        else:
            out[place] = VERSION
            out[place + 1] = 0
            out[place + 2] = np.uint8(disposition[index])
            out[place + 3] = np.uint8(reason[index])
            place = _put(out, place + 4, offset[index], 8)
            place = _put(out, place, timestamp_ms[index], 8)
            place = _put(out, place, key_length[index], 2)
            place = copy(out, place, data, key_at[index], key_length[index])
            place = copy(out, place, data, value_at[index], value_length[index])
        starts[index] = start
        ends[index] = place
        _put(out, at, place - start, _LENGTH_BYTES)
        at = place


def write_entries(
    columns: Columns, disposition: Bytes, reason: Bytes
) -> tuple[Bytes, Numbers, Numbers, list[int]]:
    """Leaves of the records, one after the other, each behind its length as in a bundle.

    Gives the bytes, each leaf's start and end, and which values stand aside.
    """
    count = len(columns)
    key_length = np.minimum(np.maximum(columns.key_length, 0), MAX_KEY_BYTES)
    value_length = np.maximum(columns.value_length, 0)
    size = HEADER_BYTES + key_length + value_length
    aside = np.flatnonzero(size > leaf_format.MAX_LEAF_BYTES).tolist()
    ready_at, ready_length = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    ready: list[bytes] = []
    for index in aside:
        leaf = leaf_format.encode(
            int(disposition[index]),
            int(reason[index]),
            int(columns.offset[index]),
            int(columns.timestamp_ms[index]),
            columns.key(index) or b"",
            columns.value(index) or b"",
        )
        ready_at[index] = sum(map(len, ready))
        ready_length[index] = size[index] = len(leaf)
        ready.append(leaf)
    out = np.empty(int(size.sum()) + _LENGTH_BYTES * count, dtype=np.uint8)
    starts, ends = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    _write(
        columns.data,
        columns.offset,
        columns.timestamp_ms,
        columns.key_at,
        key_length,
        columns.value_at,
        value_length,
        disposition,
        reason,
        ready_at,
        ready_length,
        np.frombuffer(b"".join(ready), dtype=np.uint8),
        out,
        starts,
        ends,
    )
    return out, starts, ends, aside
