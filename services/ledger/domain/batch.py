"""A batch: what one transaction adds to a log, worked out from the log's state and the records.

Owns the order of things within a log: positions, chunks of leaf bytes, tiles,
streams, counts. Changes the state it is given, so that the next batch can be
planned while this one commits; whoever fails to commit a batch must throw the
state away and read it from the database again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from kernel import leaf as leaves
from kernel.merkle import leaf_hash
from kernel.tiles import TILE_WIDTH, encode_bundle
from ledger.domain import scan as scanning
from ledger.domain.admission import ACCEPTED, REJECTED, Verdict, decide
from ledger.domain.identities import (
    Fingerprints,
    IdentityIndex,
    Positions,
    SealedRun,
    fingerprints_of,
)
from ledger.domain.scan import Scanned, body_digest, scan
from ledger.domain.streams import StreamState
from ledger.domain.tree import Tile, TreeBuilder

MAX_STREAMS_KEPT: Final = 10_000


Record = tuple[int, int, bytes | None, bytes | None]
"""One record as Kafka holds it: offset, timestamp in ms since the epoch, key, value. A plain
tuple, because one is made for every event."""


class Chunk(NamedTuple):
    """Consecutive leaves of one entry bundle, in the bundle's own encoding."""

    first_position: int
    entries: int
    data: bytes


class Exceptional(NamedTuple):
    """A record that was not accepted, for those who must look at it."""

    position: int
    disposition: int
    reason: int


class StreamRow(NamedTuple):
    """A stream as it is after the batch: a copy, because the state moves on while it is written."""

    stream_id: str
    next_seq: int
    missing: tuple[tuple[int, int], ...]
    closed_seq: int | None


def stream_rows(streams: Mapping[str, StreamState]) -> list[StreamRow]:
    """The rows of streams as they are now."""
    return [
        StreamRow(stream_id, stream.next_seq, tuple(stream.missing), stream.closed_seq)
        for stream_id, stream in streams.items()
    ]


@dataclass
class Batch:
    """What a transaction writes."""

    first_position: int
    first_offset: int
    size: int
    next_offset: int
    root: bytes
    frontier: bytes
    chunks: list[Chunk]
    tiles: list[Tile]
    counts: tuple[int, int, int, int]
    """Accepted, duplicate, conflict, rejected."""
    asides: list[tuple[int, bytes]] = field(default_factory=list)
    exceptions: list[Exceptional] = field(default_factory=list)
    streams: list[StreamRow] = field(default_factory=list)
    sealed: SealedRun | None = None

    @property
    def entries(self) -> int:
        """How many leaves it adds."""
        return self.size - self.first_position


@dataclass
class LogState:
    """A usage log as its owner knows it."""

    tree: TreeBuilder
    next_offset: int
    index: IdentityIndex
    streams: dict[str, StreamState] = field(default_factory=dict)


def chunks_of(first_position: int, data: Sequence[bytes]) -> list[Chunk]:
    """Cut leaves into chunks that never cross the bounds of entry bundles."""
    end = first_position + len(data)
    first_cut = (first_position // TILE_WIDTH + 1) * TILE_WIDTH
    cuts = [first_position, *range(first_cut, end, TILE_WIDTH), end]
    return [
        Chunk(at, to - at, encode_bundle(data[at - first_position : to - first_position]))
        for at, to in pairwise(cuts)
        if at < to
    ]


def scan_records(records: Sequence[Record]) -> list[Scanned]:
    """Read each record's value."""
    return [scan(value) for _, _, _, value in records]


class Suspects(NamedTuple):
    """What may repeat: questions for the log, and identities that stand in the batch twice."""

    positions: dict[bytes, list[int]]
    """Identity -> positions in the log whose leaf may have it."""
    twice: frozenset[bytes]


def find_suspects(index: IdentityIndex, found: Sequence[Scanned]) -> Suspects:
    """Find the usable records that may repeat an accepted one."""
    identities = [item.identity for item in found if not item.reason]
    if not identities:
        return Suspects({}, frozenset())
    fingerprints = fingerprints_of(identities)
    positions: dict[bytes, list[int]] = {}
    for question, position in index.find(fingerprints):
        positions.setdefault(identities[question], []).append(position)
    twice: frozenset[bytes] = frozenset()
    if len(np.unique(fingerprints)) < len(identities):
        twice = frozenset(identity for identity, times in Counter(identities).items() if times > 1)
    return Suspects(positions, twice)


def known_bodies(suspects: Suspects, leaves_at: Mapping[int, bytes]) -> dict[bytes, bytes]:
    """Body digests of the accepted records that suspects really repeat.

    `leaves_at` holds the leaf bytes at every position that `suspects` asks for.
    """
    bodies: dict[bytes, bytes] = {}
    for identity, positions in suspects.positions.items():
        for position in positions:
            value = leaves.decode(leaves_at[position]).value
            if scan(value).identity == identity:
                bodies[identity] = body_digest(value)
    return bodies


def plan(
    state: LogState,
    records: Sequence[Record],
    found: Sequence[Scanned],
    suspects: Suspects,
    bodies: dict[bytes, bytes],
    next_offset: int,
) -> Batch:
    """Work out the batch that these records make, and move `state` past it.

    `state.streams` holds every stream that `found` speaks of and the log
    knows; `bodies` is what `known_bodies` gave (it is added to). `next_offset`
    is where reading goes on: past the last record, and past what is no record
    (a transaction's marker, a gap that compaction left).
    """
    tree = state.tree
    streams = state.streams
    first_position = position = tree.size
    careful = suspects.twice | bodies.keys()
    touched: dict[str, StreamState] = {}
    data: list[bytes] = []
    asides: list[tuple[int, bytes]] = []
    exceptions: list[Exceptional] = []
    counts = [0, 0, 0, 0]
    accepted: list[bytes] = []
    accepted_at: list[int] = []
    encode = leaves.encode

    for record, item in zip(records, found, strict=True):
        offset, timestamp_ms, key, value = record
        stream_id = item.stream_id
        if not stream_id:
            disposition, reason = REJECTED, item.reason
        else:
            stream = touched.get(stream_id)
            if stream is None:
                stream = streams.get(stream_id)
                if stream is None:
                    stream = streams[stream_id] = StreamState()
                touched[stream_id] = stream
            identity = item.identity
            if (
                identity
                and stream.next_seq == item.stream_seq
                and not item.closes
                and identity not in careful
            ):
                # Nearly every record: the next of its stream, and never seen before.
                stream.next_seq += 1
                disposition, reason = ACCEPTED, scanning.OK
            else:
                disposition, reason = decide_carefully(item, stream, value, careful, bodies)
            if disposition == ACCEPTED:
                accepted.append(identity)
                accepted_at.append(position)
        counts[disposition - 1] += 1
        if disposition > 2:
            exceptions.append(Exceptional(position, disposition, reason))
        leaf = encode(disposition, reason, offset, timestamp_ms, key or b"", value or b"")
        if value and len(value) > scanning.MAX_VALUE_BYTES and leaves.decode(leaf).aside:
            asides.append((position, value))
        data.append(leaf)
        position += 1

    fingerprints: Fingerprints = fingerprints_of(accepted)
    positions: Positions = np.array(accepted_at, dtype=np.int64)
    first_offset = state.next_offset
    tiles = tree.extend([leaf_hash(leaf) for leaf in data])
    root, frontier = tree.root_and_frontier()
    state.next_offset = next_offset
    return Batch(
        first_position=first_position,
        first_offset=first_offset,
        size=position,
        next_offset=state.next_offset,
        root=root,
        frontier=frontier,
        chunks=chunks_of(first_position, data),
        tiles=tiles,
        counts=(counts[0], counts[1], counts[2], counts[3]),
        asides=asides,
        exceptions=exceptions,
        streams=stream_rows(touched),
        sealed=state.index.add(fingerprints, positions, position),
    )


def decide_carefully(
    item: Scanned,
    stream: StreamState,
    value: bytes | None,
    careful: frozenset[bytes],
    bodies: dict[bytes, bytes],
) -> Verdict:
    """Decide on a record that is not the next new one of its stream, or that may repeat another.

    `bodies` holds the body digests of the accepted records that `careful`
    ones may repeat; it is added to.
    """
    digest = body_digest(value) if value and item.identity in careful else b""

    def same_body(identity: bytes) -> bool | None:
        known = bodies.get(identity)
        return None if known is None else known == digest

    verdict = decide(item, stream, same_body)
    if verdict.disposition == ACCEPTED and item.identity in careful:
        bodies[item.identity] = digest
    return verdict
