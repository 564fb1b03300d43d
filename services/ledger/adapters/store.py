"""All SQL that writes a log: take-over, batches, identity runs. What is read back is in stored.py.

A batch is one statement, hence one transaction and one round trip. Its first
part is the fence: the head moves only if epoch, offset and size are what the
owner believes; every other part reads from the fence's result, so a fenced
owner writes nothing at all. Whatever goes wrong, also when the answer to a
commit is lost, the owner throws its state away, takes over again (which waits
for a statement of its own that may still run, and fences it otherwise) and
reads from the head where the log really is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ledger.domain.appending import NewKey
from ledger.domain.batch import Batch
from ledger.domain.identities import SealedRun


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


async def release(db: Any, log_id: int, epoch: int) -> None:
    """Give a log up, if it is still ours, so that another takes it at once."""
    await db.execute(
        "UPDATE log_head SET owner = '', lease_until = '-infinity'"
        " WHERE log_id = $1 AND epoch = $2 AND halted = ''",
        log_id,
        epoch,
    )
