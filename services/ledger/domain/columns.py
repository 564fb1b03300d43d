"""Records as columns: the bytes of many Kafka records and where each part of them stands.

The same content as a list of batch.Record, without an object for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ledger.domain.batch import Record

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

ABSENT: Final = -1
"""Length of a key or a value that is not there."""


class Columns(NamedTuple):
    """Records in order of offset; key and value of record i stand in `data`."""

    data: Bytes
    offset: Numbers
    timestamp_ms: Numbers
    key_at: Numbers
    key_length: Numbers
    value_at: Numbers
    value_length: Numbers

    def __len__(self) -> int:
        return len(self.offset)

    def part(self, first: int, end: int) -> Columns:
        """Records first to end - 1, in the same bytes."""
        return Columns(self.data, *(column[first:end] for column in self[1:]))

    def key(self, index: int) -> bytes | None:
        """The key of a record."""
        return self._bytes(int(self.key_at[index]), int(self.key_length[index]))

    def value(self, index: int) -> bytes | None:
        """The value of a record."""
        return self._bytes(int(self.value_at[index]), int(self.value_length[index]))

    def _bytes(self, at: int, length: int) -> bytes | None:
        return None if length == ABSENT else self.data[at : at + length].tobytes()

    def record(self, index: int) -> Record:
        """A record by itself; a negative index counts from the end."""
        return (
            int(self.offset[index]),
            int(self.timestamp_ms[index]),
            self.key(index),
            self.value(index),
        )

    def records(self) -> list[Record]:
        """The same records one by one."""
        return [self.record(index) for index in range(len(self))]


def of_records(records: Sequence[Record]) -> Columns:
    """Columns of records."""
    parts: list[bytes] = []
    rows: list[tuple[int, int, int, int, int, int]] = []
    at = 0
    for offset, timestamp_ms, key, value in records:
        key_bytes, value_bytes = key or b"", value or b""
        value_at = at + len(key_bytes)
        rows.append(
            (
                offset,
                timestamp_ms,
                at,
                ABSENT if key is None else len(key),
                value_at,
                ABSENT if value is None else len(value),
            )
        )
        parts += (key_bytes, value_bytes)
        at = value_at + len(value_bytes)
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    data = np.frombuffer(b"".join(parts), dtype=np.uint8)
    return Columns(data, *(np.ascontiguousarray(table[:, column]) for column in range(6)))


def joined(parts: Sequence[Columns]) -> Columns:
    """The records of several columns, one after the other."""
    if len(parts) == 1:
        return parts[0]
    shifts = np.cumsum([0, *(len(part.data) for part in parts[:-1])])
    data = np.concatenate([part.data for part in parts])
    data.flags.writeable = False  # as all columns' bytes are: one type for the compiled loops
    return Columns(
        data,
        np.concatenate([part.offset for part in parts]),
        np.concatenate([part.timestamp_ms for part in parts]),
        np.concatenate([part.key_at + shift for part, shift in zip(parts, shifts, strict=True)]),
        np.concatenate([part.key_length for part in parts]),
        np.concatenate([part.value_at + shift for part, shift in zip(parts, shifts, strict=True)]),
        np.concatenate([part.value_length for part in parts]),
    )
