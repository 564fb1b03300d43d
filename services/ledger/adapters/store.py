"""All SQL that writes a log: take-over, batches, identity runs.

A batch is one statement, hence one transaction and one round trip. Its first
part is the fence: the head moves only if epoch, offset and size are what the
owner believes; every other part reads from the fence's result, so a fenced
owner writes nothing at all. Whatever goes wrong, also when the answer to a
commit is lost, the owner throws its state away, takes over again (which waits
for a statement of its own that may still run, and fences it otherwise) and
reads from the head where the log really is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from kernel import leaf as leaf_format
from kernel.merkle import Frontier, leaf_hash
from kernel.tiles import TILE_WIDTH, decode_bundle, tile_root
from ledger.domain.admission import ACCEPTED
from ledger.domain.appending import KnownKey, NewKey
from ledger.domain.batch import Batch
from ledger.domain.identities import IdentityIndex, Run, SealedRun, fingerprints_of
from ledger.domain.scan import scan
from ledger.domain.streams import StreamState
from ledger.domain.tree import TreeBuilder


class FencedError(RuntimeError):
    """Another owner took the log over; what was prepared must be thrown away."""


class BrokenLogError(RuntimeError):
    """The database holds something that is not the log its head speaks of."""


class Head(NamedTuple):
    """A log's head as its new owner reads it."""

    log_id: int
    name: str
    topic_id: bytes
    epoch: int
    next_offset: int
    size: int
    root: bytes
    frontier: bytes
    opened_to: int = 0
    """Positions below it have a segment to go to."""


_TAKE = """
UPDATE log_head SET epoch = epoch + 1, owner = $2,
    lease_until = now() + $3::bigint * interval '1 millisecond'
WHERE log_id = $1 AND (owner = $2 OR lease_until < now())
RETURNING log_id, name, topic_id, epoch, next_offset, size, root, frontier, opened_to
"""

_WRITE = """
WITH control AS (
    SELECT size FROM log_head WHERE name = 'control'
), head AS (
    UPDATE log_head h SET
        next_offset = $4, size = $6, root = $7, frontier = $8,
        -- A pin never goes back; the control log itself has none.
        control_size = CASE WHEN h.name = 'control' THEN 0
            ELSE greatest(h.control_size, control.size) END,
        lease_until = greatest(lease_until, now() + $9::bigint * interval '1 millisecond'),
        accepted = accepted + $10, duplicate = duplicate + $11,
        conflict = conflict + $12, rejected = rejected + $13
    FROM control
    WHERE h.log_id = $1 AND h.epoch = $2 AND h.next_offset = $3 AND h.size = $5
    RETURNING h.log_id, old.control_size AS old_pin, new.control_size AS new_pin
), chunk AS (
    INSERT INTO log_chunk (log_id, first_position, entries, leaves)
    SELECT head.log_id, c.* FROM head, unnest($14::bigint[], $15::smallint[], $16::bytea[]) AS c
), tile AS (
    INSERT INTO log_tile (log_id, level, tile_index, hashes)
    SELECT head.log_id, t.* FROM head, unnest($17::smallint[], $18::bigint[], $19::bytea[]) AS t
), aside AS (
    INSERT INTO log_aside (log_id, position, value)
    SELECT head.log_id, a.* FROM head, unnest($20::bigint[], $21::bytea[]) AS a
), exception AS (
    INSERT INTO log_exception (log_id, position, disposition, reason)
    SELECT head.log_id, e.* FROM head, unnest($22::bigint[], $23::smallint[], $24::smallint[]) AS e
), pin AS (
    INSERT INTO log_pin (log_id, from_position, control_size)
    SELECT log_id, $5, new_pin FROM head WHERE new_pin <> old_pin OR $5 = 0
)
"""

_WRITE_USAGE = (
    _WRITE  # noqa: S608 - two constants, put together
    + """, stream AS (
    INSERT INTO producer_stream AS p (log_id, stream_id, next_seq, missing, closed_seq, gap_since)
    SELECT head.log_id, s.stream_id, s.next_seq,
        CASE WHEN s.missing = '' THEN '{}' ELSE string_to_array(s.missing, ',')::bigint[] END,
        s.closed_seq, CASE WHEN s.missing = '' THEN NULL ELSE clock_timestamp() END
    FROM head, unnest($25::text[], $26::bigint[], $27::text[], $28::bigint[])
        AS s(stream_id, next_seq, missing, closed_seq)
    ON CONFLICT (log_id, stream_id) DO UPDATE SET
        next_seq = excluded.next_seq, missing = excluded.missing,
        closed_seq = excluded.closed_seq, seen_at = clock_timestamp(),
        gap_since = CASE WHEN excluded.gap_since IS NULL THEN NULL
            ELSE coalesce(p.gap_since, excluded.gap_since) END
)
SELECT new_pin FROM head
"""
)

_WRITE_APPEND = (
    _WRITE  # noqa: S608 - two constants, put together
    + """, key AS (
    INSERT INTO append_key (log_id, idempotency_key, position, payload_digest)
    SELECT head.log_id, k.* FROM head, unnest($25::text[], $26::bigint[], $27::bytea[]) AS k
)
SELECT new_pin FROM head
"""
)


async def open_log(db: Any, name: str) -> int:
    """Number of a log, which is made when it is not there."""
    found: int = await db.fetchval("SELECT open_log($1)", name)
    return found


async def open_segments(db: Any, log_id: int, end: int) -> int:
    """Have a segment for every position below `end`, and one more; gives how far they reach."""
    reached: int = await db.fetchval("SELECT open_segments($1, $2)", log_id, end)
    return reached


async def take_over(db: Any, log_id: int, owner: str, lease_ms: int) -> Head | None:
    """Become a log's owner: every earlier owner is fenced. None while another's lease runs."""
    row = await db.fetchrow(_TAKE, log_id, owner, lease_ms)
    return None if row is None else Head(*row)


async def halt(db: Any, head: Head, why: str, pause_ms: int) -> None:
    """Give a log up that cannot go on, say why in its head, and let nobody try for a while."""
    await db.execute(
        "UPDATE log_head SET owner = '', halted = $3,"
        " lease_until = now() + $4::bigint * interval '1 millisecond'"
        " WHERE log_id = $1 AND epoch = $2",
        head.log_id,
        head.epoch,
        why,
        pause_ms,
    )


async def resume(db: Any, head: Head) -> None:
    """Say that a log goes on."""
    await db.execute(
        "UPDATE log_head SET halted = '' WHERE log_id = $1 AND epoch = $2 AND halted <> ''",
        head.log_id,
        head.epoch,
    )


async def bind_topic(db: Any, head: Head, topic_id: bytes) -> None:
    """Note the topic that a log is fed from. Errors: FencedError."""
    done = await db.fetchval(
        "UPDATE log_head SET topic_id = $3 WHERE log_id = $1 AND epoch = $2 RETURNING 1",
        head.log_id,
        head.epoch,
        topic_id,
    )
    if done is None:
        raise FencedError(f"log {head.name}: epoch {head.epoch} is over")


async def write_usage(db: Any, head: Head, batch: Batch, lease_ms: int) -> int:
    """Commit a usage log's batch; gives its pin. Errors: FencedError."""
    streams = batch.streams
    pin = await db.fetchval(
        _WRITE_USAGE,
        *_arguments(head, batch, lease_ms),
        [stream.stream_id for stream in streams],
        [stream.next_seq for stream in streams],
        [",".join(f"{first},{end}" for first, end in stream.missing) for stream in streams],
        [stream.closed_seq for stream in streams],
    )
    return _pin(head, pin)


async def write_append(
    db: Any, head: Head, batch: Batch, keys: Sequence[NewKey], lease_ms: int
) -> int:
    """Commit an Append log's batch; gives its pin. Errors: FencedError."""
    pin = await db.fetchval(
        _WRITE_APPEND,
        *_arguments(head, batch, lease_ms),
        [key.idempotency_key for key in keys],
        [key.position for key in keys],
        [key.payload_digest for key in keys],
    )
    return _pin(head, pin)


def _pin(head: Head, pin: int | None) -> int:
    if pin is None:
        raise FencedError(f"log {head.name}: epoch {head.epoch} is over, another took it over")
    return pin


def _arguments(head: Head, batch: Batch, lease_ms: int) -> tuple[Any, ...]:
    chunks, tiles = batch.chunks, batch.tiles
    asides, exceptions = batch.asides, batch.exceptions
    return (
        head.log_id,
        head.epoch,
        batch.first_offset,
        batch.next_offset,
        batch.first_position,
        batch.size,
        batch.root,
        batch.frontier,
        lease_ms,
        *batch.counts,
        [chunk.first_position for chunk in chunks],
        [chunk.entries for chunk in chunks],
        [chunk.data for chunk in chunks],
        [tile.level for tile in tiles],
        [tile.tile_index for tile in tiles],
        [tile.hashes for tile in tiles],
        [position for position, _ in asides],
        [value for _, value in asides],
        [item.position for item in exceptions],
        [item.disposition for item in exceptions],
        [item.reason for item in exceptions],
    )


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


async def save_run(db: Any, log_id: int, sealed: SealedRun) -> None:
    """Write a sealed run away. It is a function of the log, so writing it twice is no harm."""
    await db.execute(
        "INSERT INTO identity_run (log_id, start_position, end_position, fingerprints, positions)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        log_id,
        sealed.start_position,
        sealed.end_position,
        sealed.run.fingerprints.astype("<u8").tobytes(),
        sealed.run.positions.astype("<i8").tobytes(),
    )


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


async def release(db: Any, log_id: int, epoch: int) -> None:
    """Give a log up, if it is still ours, so that another takes it at once."""
    await db.execute(
        "UPDATE log_head SET owner = '', lease_until = '-infinity'"
        " WHERE log_id = $1 AND epoch = $2 AND halted = ''",
        log_id,
        epoch,
    )
