"""What is read back of a log's rows: leaves, and what its owner goes on from.

Nothing here is believed because it stands in the database: the edge of the tree must give the
head's root, leaves must follow each other, and identities are made of the leaves themselves
wherever no run holds them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import numpy as np

from kernel import leaf as leaf_format
from kernel.merkle import Frontier, leaf_hash
from kernel.tiles import TILE_WIDTH, decode_bundle, tile_root
from ledger.adapters.store import BrokenLogError, Head, save_run
from ledger.domain.admission import ACCEPTED
from ledger.domain.appending import KnownKey
from ledger.domain.identities import IdentityIndex, Run, SealedRun, fingerprints_of
from ledger.domain.scan import scan
from ledger.domain.streams import StreamState
from ledger.domain.tree import TreeBuilder


async def load_tree(db: Any, head: Head) -> TreeBuilder:
    """Read the edge of a log's tree out of its leaves and tiles.

    Errors: BrokenLogError when it does not give the head's own root.
    """
    size = head.size
    first = size // TILE_WIDTH * TILE_WIDTH
    leaves = await read_leaves(db, head.log_id, first, size)
    partial = await edge_at(db, head.log_id, size, [leaf_hash(leaf) for leaf in leaves])
    try:
        tree = TreeBuilder(size, partial)
        Frontier.from_bytes(size, head.frontier)
    except ValueError as error:
        raise BrokenLogError(f"log {head.name} is not whole: {error}") from None
    if tree.root() != head.root or tree.frontier() != head.frontier:
        raise BrokenLogError(
            f"log {head.name}: its last leaves and tiles do not give the root of its head at size"
            f" {size}; something was changed by hand"
        )
    return tree


async def edge_at(db: Any, log_id: int, size: int, leaf_hashes: list[bytes]) -> list[list[bytes]]:
    """The hashes at the edge of a log's tree when it had `size` leaves, level by level, as
    TreeBuilder takes them. `leaf_hashes` are those after the last full tile.
    """
    partial = [leaf_hashes]
    level, nodes = 1, size // TILE_WIDTH
    while nodes:
        rows = await db.fetch(
            "SELECT hashes FROM log_tile WHERE log_id = $1 AND level = $2 AND tile_index >= $3"
            " AND tile_index < $4 ORDER BY tile_index",
            log_id,
            level - 1,
            nodes // TILE_WIDTH * TILE_WIDTH,
            nodes,
        )
        partial.append([tile_root(row["hashes"]) for row in rows])
        level, nodes = level + 1, nodes // TILE_WIDTH
    return partial


async def read_leaves(db: Any, log_id: int, first: int, end: int) -> list[bytes]:
    """Leaf bytes of the positions [first, end). Errors: BrokenLogError when some are missing."""
    if first >= end:
        return []
    rows = await db.fetch(
        "SELECT first_position, entries, leaves FROM log_chunk"
        " WHERE log_id = $1 AND first_position >= $2 AND first_position < $3"
        " ORDER BY first_position",
        log_id,
        first // TILE_WIDTH * TILE_WIDTH,
        end,
    )
    return cut_leaves(log_id, rows, first, end)


def cut_leaves(log_id: int, rows: Iterable[Any], first: int, end: int) -> list[bytes]:
    """Leaves [first, end) out of consecutive chunk rows that begin at `first` or before it."""
    leaves: list[bytes] = []
    at: int | None = None
    for first_position, entries, data in rows:
        if at is not None and first_position != at:
            raise BrokenLogError(f"log {log_id}: position {at} is missing")
        part = decode_bundle(data)
        if len(part) != entries:
            raise BrokenLogError(f"log {log_id}: the chunk at {first_position} is not whole")
        at = first_position + entries
        if at <= first:
            continue
        leaves.extend(part[max(0, first - first_position) : end - first_position])
    if len(leaves) != end - first:
        raise BrokenLogError(f"log {log_id}: position {first + len(leaves)} is missing")
    return leaves


async def leaves_at(db: Any, log_id: int, positions: Iterable[int]) -> dict[int, bytes]:
    """Leaf bytes at single positions."""
    wanted = sorted(set(positions))
    if not wanted:
        return {}
    rows = await db.fetch(
        "SELECT p.position, c.first_position, c.leaves FROM unnest($2::bigint[]) AS p(position),"
        " LATERAL (SELECT first_position, leaves FROM log_chunk WHERE log_id = $1"
        "   AND first_position <= p.position ORDER BY first_position DESC LIMIT 1) c",
        log_id,
        wanted,
    )
    found: dict[int, bytes] = {}
    for position, first_position, data in rows:
        part = decode_bundle(data)
        if position - first_position >= len(part):
            raise BrokenLogError(f"log {log_id}: position {position} is missing")
        found[position] = part[position - first_position]
    if len(found) != len(wanted):
        raise BrokenLogError(f"log {log_id}: a position of {wanted[:5]}... is missing")
    return found


_TAIL_STEP: Final = 16_384


async def load_index(
    db: Any, head: Head, read: Callable[[int, int], Awaitable[list[bytes]]]
) -> IdentityIndex:
    """Read the identities of a log: its sealed runs, and what came after them out of the leaves,
    which `read` gives from one position to another.
    """
    index = IdentityIndex()
    end = await _load_runs(db, head, index)
    while end < head.size:
        start, end = end, min(end + _TAIL_STEP, head.size)
        identities: list[bytes] = []
        positions: list[int] = []
        for position, data in enumerate(await read(start, end), start):
            leaf = leaf_format.decode(data)
            if leaf.disposition == ACCEPTED:
                identities.append(scan(leaf.value).identity)
                positions.append(position)
        sealed = index.add(fingerprints_of(identities), np.array(positions, dtype=np.int64), end)
        if sealed is not None:
            await save_run(db, head.log_id, sealed)
    return index


async def _load_runs(db: Any, head: Head, index: IdentityIndex) -> int:
    """Load the runs that follow each other from position 0 on; gives where they end."""
    rows = await db.fetch(
        "SELECT start_position, end_position FROM identity_run"
        " WHERE log_id = $1 AND end_position <= $2",
        head.log_id,
        head.size,
    )
    ends = {row["start_position"]: row["end_position"] for row in rows}
    start = 0
    # One by one: a run is 2 MB, all of them need not be in memory twice.
    while (end := ends.get(start)) is not None:
        row = await db.fetchrow(
            "SELECT fingerprints, positions FROM identity_run"
            " WHERE log_id = $1 AND start_position = $2",
            head.log_id,
            start,
        )
        run = Run(
            np.frombuffer(row["fingerprints"], dtype="<u8"),
            np.frombuffer(row["positions"], dtype="<i8"),
        )
        index.load(SealedRun(start, end, run))
        start = end
    return start


async def load_streams(db: Any, log_id: int, stream_ids: Iterable[str]) -> dict[str, StreamState]:
    """State of the producer streams that the log knows."""
    wanted = list(stream_ids)
    if not wanted:
        return {}
    rows = await db.fetch(
        "SELECT stream_id, next_seq, missing, closed_seq FROM producer_stream"
        " WHERE log_id = $1 AND stream_id = ANY($2::text[])",
        log_id,
        wanted,
    )
    return {
        row["stream_id"]: StreamState(
            row["next_seq"],
            list(zip(row["missing"][::2], row["missing"][1::2], strict=True)),
            row["closed_seq"],
        )
        for row in rows
    }


async def known_keys(db: Any, log_id: int, keys: Iterable[str]) -> dict[str, KnownKey]:
    """What idempotency keys stand for already."""
    rows = await db.fetch(
        "SELECT idempotency_key, position, payload_digest FROM append_key"
        " WHERE log_id = $1 AND idempotency_key = ANY($2::text[])",
        log_id,
        list(keys),
    )
    return {
        row["idempotency_key"]: KnownKey(row["position"], row["payload_digest"]) for row in rows
    }
