"""Batches out of columns: batch.py's `plan`, with compiled loops for the records that are plain.

Holds the order of things together: what is plain and new is accepted in runs;
every other record goes, in its turn, through the same rules as in batch.py.
Both give the same batch for the same records, which a property test holds.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kernel.sha256 import hash_slices
from kernel.tiles import TILE_WIDTH
from ledger.domain.admission import ACCEPTED, REJECTED
from ledger.domain.batch import (
    Batch,
    Chunk,
    Exceptional,
    LogState,
    StreamRow,
    Suspects,
    decide_carefully,
    stream_rows,
)
from ledger.domain.columns import Bytes, Columns, Numbers
from ledger.domain.compiled import tree as compiled_tree
from ledger.domain.compiled.entries import accept_run, write_entries
from ledger.domain.compiled.usage import PlainRecords, read_plain
from ledger.domain.identities import IdentityIndex
from ledger.domain.scan import Scanned, scan
from ledger.domain.streams import StreamState

_LEAF_PREFIX: Final = 0


class Reading(NamedTuple):
    """Records read by themselves, before the log is looked at."""

    columns: Columns
    plain: PlainRecords
    others: dict[int, Scanned]
    """What scan.py says of the records that are not plain."""
    usable: npt.NDArray[np.bool_]
    fingerprints: npt.NDArray[np.uint64]
    """First 8 bytes of each identity; of a record that is not usable, nothing."""

    def scanned(self, index: int) -> Scanned:
        """What scan.py says of a record."""
        other = self.others.get(index)
        if other is not None:
            return other
        plain = self.plain
        return Scanned(
            0,
            plain.stream_ids[plain.stream[index]],
            int(plain.seq[index]),
            plain.identity[index].tobytes(),
            False,
        )

    def stream_ids(self) -> set[str]:
        """Streams that the records speak of."""
        return {
            *self.plain.stream_ids,
            *(item.stream_id for item in self.others.values() if item.stream_id),
        }


def read(columns: Columns) -> Reading:
    """Read the records by themselves."""
    plain = read_plain(columns)
    others = {index: scan(columns.value(index)) for index in np.flatnonzero(~plain.plain).tolist()}
    usable = plain.plain.copy()
    for index, item in others.items():
        if not item.reason:
            usable[index] = True
            plain.identity[index] = np.frombuffer(item.identity, dtype=np.uint8)
    fingerprints = plain.identity.view("<u8")[:, 0]
    return Reading(columns, plain, others, usable, fingerprints)


def find_suspects(index: IdentityIndex, reading: Reading) -> Suspects:
    """Find the usable records that may repeat an accepted one, or another of these."""
    asked = np.flatnonzero(reading.usable)
    fingerprints = reading.fingerprints[asked]
    identity = reading.plain.identity
    positions: dict[bytes, list[int]] = {}
    for question, position in index.find(fingerprints):
        positions.setdefault(identity[asked[question]].tobytes(), []).append(position)
    in_order = np.sort(fingerprints)
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    twice: frozenset[bytes] = frozenset()
    if len(repeated):
        # Two identities may share a fingerprint; taking both for suspects costs time alone.
        rows = asked[np.isin(fingerprints, repeated)]
        twice = frozenset(identity[row].tobytes() for row in rows)
    return Suspects(positions, twice)


def plan(
    state: LogState,
    reading: Reading,
    suspects: Suspects,
    bodies: dict[bytes, bytes],
    next_offset: int,
) -> Batch:
    """What `batch.plan` does, for records in columns."""
    columns = reading.columns
    first_position = state.tree.size
    careful = suspects.twice | bodies.keys()
    disposition, reason, streams = _verdicts(state, reading, careful, bodies)
    entries, starts, ends, aside = write_entries(columns, disposition, reason)
    tiles = compiled_tree.extend(
        state.tree, hash_slices(entries, starts, ends, prefix=_LEAF_PREFIX)
    )
    root, frontier = state.tree.root_and_frontier()
    accepted = np.flatnonzero(disposition == ACCEPTED)
    first_offset, state.next_offset = state.next_offset, next_offset
    counts = np.bincount(disposition, minlength=REJECTED + 1).tolist()
    return Batch(
        first_position=first_position,
        first_offset=first_offset,
        size=state.tree.size,
        next_offset=next_offset,
        root=root,
        frontier=frontier,
        chunks=_chunks(first_position, entries, starts, ends),
        tiles=tiles,
        counts=(counts[1], counts[2], counts[3], counts[4]),
        asides=[(first_position + index, columns.value(index) or b"") for index in aside],
        exceptions=[
            Exceptional(first_position + index, int(disposition[index]), int(reason[index]))
            for index in np.flatnonzero(disposition > 2).tolist()
        ],
        streams=streams,
        sealed=state.index.add(
            reading.fingerprints[accepted], accepted + first_position, state.tree.size
        ),
    )


def _chunks(first_position: int, entries: Bytes, starts: Numbers, ends: Numbers) -> list[Chunk]:
    """Cut entries into rows that never cross the bounds of entry bundles."""
    count = len(starts)
    if not count:
        return []
    first_cut = TILE_WIDTH - first_position % TILE_WIDTH
    cuts = [0, *range(first_cut, count, TILE_WIDTH), count]
    return [
        # Each entry stands behind two bytes of length.
        Chunk(first_position + at, to - at, entries[starts[at] - 2 : ends[to - 1]].tobytes())
        for at, to in pairwise(cuts)
    ]


def _verdicts(
    state: LogState, reading: Reading, careful: frozenset[bytes], bodies: dict[bytes, bytes]
) -> tuple[Bytes, Bytes, list[StreamRow]]:
    """(disposition, reason) of each record, and the streams as they are afterwards."""
    plain = reading.plain
    count = len(reading.columns)
    disposition, reason = np.zeros(count, dtype=np.uint8), np.zeros(count, dtype=np.uint8)
    touched = {name: _stream(state, name) for name in plain.stream_ids}
    next_seq = np.array([stream.next_seq for stream in touched.values()], dtype=np.int64)
    number_of = {name: number for number, name in enumerate(plain.stream_ids)}
    usual = _usual(reading, careful)
    index = 0
    while True:
        index = accept_run(index, usual, plain.stream, plain.seq, next_seq, disposition)
        if index == count:
            break
        item = reading.scanned(index)
        if not item.stream_id:
            disposition[index], reason[index] = REJECTED, item.reason
            index += 1
            continue
        stream = touched.get(item.stream_id)
        if stream is None:
            stream = touched[item.stream_id] = _stream(state, item.stream_id)
        number = number_of.get(item.stream_id)
        if number is not None:
            stream.next_seq = int(next_seq[number])
        verdict = decide_carefully(item, stream, reading.columns.value(index), careful, bodies)
        disposition[index], reason[index] = verdict
        if number is not None:
            next_seq[number] = stream.next_seq
        index += 1
    for name, number in number_of.items():
        touched[name].next_seq = int(next_seq[number])
    return disposition, reason, stream_rows(touched)


def _stream(state: LogState, name: str) -> StreamState:
    stream = state.streams.get(name)
    if stream is None:
        stream = state.streams[name] = StreamState()
    return stream


def _usual(reading: Reading, careful: frozenset[bytes]) -> npt.NDArray[np.bool_]:
    """Which records are plain and repeat nothing."""
    usual = reading.plain.plain.copy()
    if careful:
        marks = np.array([int.from_bytes(item[:8], "little") for item in careful], dtype=np.uint64)
        for index in np.flatnonzero(np.isin(reading.fingerprints, marks)).tolist():
            if reading.plain.identity[index].tobytes() in careful:
                usual[index] = False
    return usual
