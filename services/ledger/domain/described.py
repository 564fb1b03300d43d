"""What stands in leaves, as columns for those who search a sealed segment without our formats.

Owns the meaning of the columns in plain code, `describe`; `described` gives the
same by a compiled loop, and asks the plain code where that is not sure.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kernel import leaf as leaf_format
from ledger.domain.columns import Numbers
from ledger.domain.compiled import reading
from ledger.domain.leafrun import LeafRun
from ledger.domain.matching import NANOS, event_of

_TIMESTAMP_AT = 12  # version, flags, disposition, reason, offset; see kernel/leaf.py


class Event(NamedTuple):
    """What is told of a leaf's usage event; all None where it cannot be read as one."""

    account_id: str | None
    served_model: str | None
    event_time_ns: int | None


class Described(NamedTuple):
    """A row for each leaf."""

    disposition: pa.Array
    reason: pa.Array
    timestamp_ms: pa.Array
    account_id: pa.Array
    served_model: pa.Array
    event_time_ns: pa.Array


def describe(data: bytes) -> Event:
    """Read what is told out of one leaf. Errors: kernel.leaf.LeafError for what is none."""
    leaf = leaf_format.decode(data)
    event = None if leaf.aside else event_of(leaf.value)
    if event is None:
        return Event(None, None, None)
    at = event.event_time
    is_told = event.HasField("event_time") and abs(at.seconds) <= reading.MAX_NANOSECONDS_S
    return Event(
        event.account_id, event.served_model, at.seconds * NANOS + at.nanos if is_told else None
    )


def described(run: LeafRun) -> Described:
    """Read the columns out of leaves. Errors: kernel.leaf.LeafError for what is none."""
    count = len(run)
    found = np.zeros((count, 5), dtype=np.int64)
    sure = np.zeros(count, dtype=np.bool_)
    reading.locate(run.data, run.starts, run.ends, found, sure)
    found[~sure] = 0
    has_time = sure & (found[:, 4] != reading.NO_TIME)
    accounts = _texts(run, found[:, 0], found[:, 1], sure)
    models = _texts(run, found[:, 2], found[:, 3], sure)
    times = pa.array(found[:, 4], pa.int64(), mask=~has_time)
    unsure = np.flatnonzero(~sure).tolist()
    if unsure:
        told = {index: describe(run.leaf(index)) for index in unsure}
        accounts, models, times = (
            _patched(column, {index: event[place] for index, event in told.items()})
            for place, column in enumerate((accounts, models, times))
        )
    stamps = run.data[(run.starts + _TIMESTAMP_AT)[:, None] + np.arange(8)]
    return Described(
        pa.array(run.data[run.starts + 2].astype(np.int8)),
        pa.array(run.data[run.starts + 3].astype(np.int8)),
        pa.array(stamps.view(">i8").reshape(-1).astype(np.int64)),
        accounts,
        models,
        times,
    )


def leaves_of(run: LeafRun) -> pa.Array:
    """The leaves themselves as a column."""
    return _slices(run, run.starts, run.ends, pa.binary(), None)


def _texts(run: LeafRun, starts: Numbers, ends: Numbers, valid: npt.NDArray[np.bool_]) -> pa.Array:
    bits = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return _slices(run, starts, ends, pa.string(), bits)


def _slices(
    run: LeafRun, starts: Numbers, ends: Numbers, kind: pa.DataType, valid: pa.Buffer | None
) -> pa.Array:
    offsets = np.empty(len(starts) + 1, dtype=np.int32)
    data = np.empty(int((ends - starts).sum()), dtype=np.uint8)
    reading.write_binary(
        run.data,
        np.ascontiguousarray(starts),
        np.ascontiguousarray(ends),
        np.arange(len(starts)),
        offsets,
        data,
    )
    return pa.Array.from_buffers(
        kind, len(starts), [valid, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


def _patched(column: pa.Array, values: dict[int, str | int | None]) -> pa.Array:
    found = column.to_pylist()
    for index, value in values.items():
        found[index] = value
    return pa.array(found, column.type)
