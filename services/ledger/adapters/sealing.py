"""Sealing: whole segments of a log into files of the archive, proved, and then out of the tables.

An administrator's act, with an administrator's connection: the service's role
cannot detach anything. In this order, and each step only after the one before
held for all of a segment: the leaves are written to a file; the file is read
again from where it is kept; every full tile, and the root at the segment's
end, are computed anew from those leaves; they must be the tiles and the root
that the log has, and that root must be a prefix of a checkpoint whose
signature holds. Only then, in one transaction, the segment is put down as
sealed and its rows are given up.

A crash leaves the rows, or the rows and a file that the next attempt writes
anew, or the sealed segment. Nothing of it is ever less than whole.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import asyncpg
import numpy as np
import pyarrow as pa
import structlog

from kernel import merkle
from kernel.merkle import EMPTY_ROOT, HASH_BYTES
from kernel.note import NoteError, VerifierKey, open_checkpoint
from kernel.sha256 import hash_slices
from kernel.tiles import TILE_WIDTH
from ledger.adapters import archive as archives
from ledger.adapters import stored
from ledger.adapters.archive import GROUP_ENTRIES, Archive, Sealed
from ledger.adapters.leaves import LeafReader
from ledger.adapters.nodes import NodeReader
from ledger.adapters.store import BrokenLogError
from ledger.domain.compiled.tree import extend
from ledger.domain.described import described, leaves_of
from ledger.domain.leafrun import LeafRun
from ledger.domain.tree import TreeBuilder

log = structlog.get_logger()

_LOCK: Final = 0x7365616C  # "seal": one sealer at a time
_LOCK_TIMEOUT_MS: Final = 2_000
_DETACH_ATTEMPTS: Final = 10
_BOUNDS: Final = re.compile(r"FROM \('?(\d+)'?\) TO \('?(\d+)'?\)")

_PARTS: Final = (
    "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bounds,"
    " pg_total_relation_size(c.oid) AS bytes FROM pg_inherits i"
    " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::text::regclass"
)


class SealError(RuntimeError):
    """A segment that must not be sealed."""


class Policy(NamedTuple):
    """Which segments leave the database."""

    keep_entries: int
    """So many of a log's newest entries always stay, and at least one whole segment."""
    older_than: dt.timedelta
    """The last entry of the segment must have been committed so long ago."""


class Segment(NamedTuple):
    """A segment that is in the database."""

    log_id: int
    log: str
    start: int
    end: int
    table: str
    table_bytes: int


class Result(NamedTuple):
    """A segment that was sealed and detached."""

    segment: Segment
    file: str
    file_bytes: int


async def segments_of(db: Any, log_id: int, log_name: str) -> list[Segment]:
    """A log's segments in the database, in order."""
    rows = await db.fetch(_PARTS, f"ledger.log_chunk_{log_id}")
    found = []
    for table, bounds, size in rows:
        match = _BOUNDS.search(bounds)
        if match is None:
            raise SealError(f"{table} is no segment: {bounds}")
        found.append(Segment(log_id, log_name, int(match[1]), int(match[2]), table, size))
    return sorted(found, key=lambda item: item.start)


class Sealer:
    """Seals what a policy gives up, log after log, oldest first."""

    def __init__(
        self, pool: Any, archive: Archive, keys: Sequence[VerifierKey], origin: str
    ) -> None:
        """`pool` has an administrator's connections; `keys` are all that are trusted."""
        self._pool = pool
        self._archive = archive
        self._keys = keys
        self._origin = origin
        self._nodes = NodeReader(pool)
        self._leaves = LeafReader(pool, archive)

    async def due(self, policy: Policy) -> list[Segment]:
        """The segments of usage logs that the policy gives up, oldest first."""
        found: list[Segment] = []
        heads = await self._pool.fetch(
            "SELECT log_id, name, size FROM log_head WHERE name LIKE 'usage-%' ORDER BY log_id"
        )
        for log_id, name, size in heads:
            segments = await segments_of(self._pool, log_id, name)
            whole = [item for item in segments if item.end <= size]
            # The newest whole one stays: whoever takes the log over reads its end.
            for segment in whole[:-1]:
                if segment.end > size - policy.keep_entries or not await self._is_old(
                    segment, policy.older_than
                ):
                    break
                found.append(segment)
        return found

    async def _is_old(self, segment: Segment, older_than: dt.timedelta) -> bool:
        # Rows are committed in order of position, so the last one is the newest.
        is_old: bool = await self._pool.fetchval(
            "SELECT committed_at < clock_timestamp() - $3::interval FROM log_chunk"
            " WHERE log_id = $1 AND first_position < $2 ORDER BY first_position DESC LIMIT 1",
            segment.log_id,
            segment.end,
            older_than,
        )
        return is_old

    async def seal(self, segment: Segment) -> Result:
        """Seal a segment and detach it.

        Errors: SealError, ArchiveError, BrokenLogError; nothing is detached then.
        """
        checkpoint_size, checkpoint_root = await self._checkpoint(segment)
        start_root = await self._start_root(segment)
        end_root = await self._root_at(segment.log_id, segment.end)
        await self._check_signed(segment, end_root, checkpoint_size, checkpoint_root)
        file = archives.file_name(segment.log, segment.start, segment.end)
        metadata = {
            "origin": f"{self._origin}/{segment.log}",
            "start": str(segment.start),
            "end": str(segment.end),
            "start_root": start_root.hex(),
            "end_root": end_root.hex(),
        }
        loop = asyncio.get_running_loop()
        size, digest = await asyncio.to_thread(
            self._archive.write, file, self._batches(segment, loop), metadata
        )
        sealed = Sealed(segment.log_id, segment.start, segment.end, file, digest, end_root)
        await self._prove(segment, sealed)
        await self._detach(segment, sealed, size, start_root)
        log.info(
            "sealed",
            log=segment.log,
            start=segment.start,
            end=segment.end,
            file=file,
            file_bytes=size,
            table_bytes=segment.table_bytes,
            end_root=end_root.hex(),
        )
        return Result(segment, file, size)

    async def _checkpoint(self, segment: Segment) -> tuple[int, bytes]:
        """(size, root) of the newest checkpoint, whose signature holds."""
        origin = f"{self._origin}/{segment.log}"
        note = await self._pool.fetchval(
            "SELECT note FROM checkpoint WHERE log_id = $1 ORDER BY size DESC LIMIT 1",
            segment.log_id,
        )
        if note is None:
            raise SealError(f"log {segment.log} has no checkpoint: only what is signed is sealed")
        problem = f"there is no verifier key of {origin}"
        for key in self._keys:
            if key.name != origin:
                continue
            try:
                signed = open_checkpoint(note, key)
            except NoteError as error:
                problem = str(error)
            else:
                return signed.size, signed.root
        raise SealError(f"the newest checkpoint of log {segment.log}: {problem}")

    async def _start_root(self, segment: Segment) -> bytes:
        if segment.start == 0:
            return EMPTY_ROOT
        before = await self._pool.fetchval(
            "SELECT end_root FROM log_segment WHERE log_id = $1 AND end_position = $2",
            segment.log_id,
            segment.start,
        )
        if before is None:
            raise SealError(
                f"log {segment.log}: the segment that ends at {segment.start} is not sealed;"
                " segments are sealed in order"
            )
        if before != await self._root_at(segment.log_id, segment.start):
            raise SealError(
                f"log {segment.log}: the tiles below {segment.start} do not give the root that"
                " was sealed there"
            )
        return bytes(before)

    async def _root_at(self, log_id: int, size: int) -> bytes:
        return await self._nodes.run(log_id, lambda read: merkle.root_at(size, read))

    async def _check_signed(
        self, segment: Segment, end_root: bytes, size: int, root: bytes
    ) -> None:
        if segment.end > size:
            raise SealError(
                f"log {segment.log} is signed to {size}, the segment ends at {segment.end}:"
                " wait for the signer"
            )
        proof = await self._nodes.run(
            segment.log_id, lambda read: merkle.consistency_proof(segment.end, size, read)
        )
        try:
            merkle.verify_consistency(segment.end, size, end_root, root, proof)
        except merkle.ProofError as error:
            raise SealError(
                f"log {segment.log}: the tree of {segment.end} entries is not a prefix of what is"
                f" signed at {size}: {error}"
            ) from None

    def _batches(
        self, segment: Segment, loop: asyncio.AbstractEventLoop
    ) -> Iterator[pa.RecordBatch]:
        """The segment's leaves as row groups; runs in a thread of its own."""
        for first in range(segment.start, segment.end, GROUP_ENTRIES):
            end = min(first + GROUP_ENTRIES, segment.end)
            parts: list[pa.RecordBatch] = []
            at = first
            while at < end:
                reading = self._leaves.run(segment.log_id, at, end)
                run = asyncio.run_coroutine_threadsafe(reading, loop).result()
                parts.append(batch_of(run))
                at = run.end
            # One batch a group, or the writer would make a group of each.
            yield pa.concat_batches(parts)

    async def _prove(self, segment: Segment, sealed: Sealed) -> None:
        """Compute the tiles and the root anew from the file as it is kept."""
        edge = await stored.edge_at(self._pool, segment.log_id, segment.start, [])
        tree = TreeBuilder(segment.start, edge)
        at = segment.start
        while at < segment.end:
            run = await self._archive.run(sealed, at, segment.end)
            hashes = await asyncio.to_thread(hash_slices, run.data, run.starts, run.ends, 0)
            await self._check_tiles(segment, at, hashes)
            await asyncio.to_thread(extend, tree, hashes)
            at = run.end
        if tree.size != segment.end or tree.root() != sealed.end_root:
            raise SealError(
                f"log {segment.log}: {self._archive.path(sealed.file)} gives the root"
                f" {tree.root().hex()} at {tree.size}, the log has {sealed.end_root.hex()}"
            )

    async def _check_tiles(self, segment: Segment, first: int, hashes: Any) -> None:
        rows = await self._pool.fetch(
            "SELECT hashes FROM log_tile WHERE log_id = $1 AND level = 0 AND tile_index >= $2"
            " AND tile_index < $3 ORDER BY tile_index",
            segment.log_id,
            first // TILE_WIDTH,
            (first + len(hashes)) // TILE_WIDTH,
        )
        kept = np.frombuffer(b"".join(row["hashes"] for row in rows), dtype=np.uint8)
        kept = kept.reshape(-1, HASH_BYTES)
        if len(kept) != len(hashes):
            raise SealError(f"log {segment.log}: a tile from position {first} on is missing")
        differing = np.flatnonzero((kept != hashes).any(axis=1))
        if len(differing):
            raise SealError(
                f"log {segment.log}: the leaf at position {first + int(differing[0])} is not the"
                " one that its tile was made of; something was changed by hand"
            )

    async def _detach(self, segment: Segment, sealed: Sealed, size: int, start_root: bytes) -> None:
        """Put the segment down as sealed and give its rows up, all or nothing."""
        for attempt in range(_DETACH_ATTEMPTS):
            try:
                async with self._pool.acquire() as db, db.transaction():
                    await db.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
                    await db.execute(
                        "INSERT INTO log_segment (log_id, start_position, end_position, file,"
                        " file_bytes, sha256, start_root, end_root)"
                        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                        segment.log_id,
                        segment.start,
                        segment.end,
                        sealed.file,
                        size,
                        sealed.sha256,
                        start_root,
                        sealed.end_root,
                    )
                    await db.execute(
                        "INSERT INTO log_detached (log_id, start_position) VALUES ($1, $2)",
                        segment.log_id,
                        segment.start,
                    )
                    await db.execute(
                        f'ALTER TABLE ledger."log_chunk_{segment.log_id}"'
                        f' DETACH PARTITION ledger."{segment.table}"'
                    )
                    await db.execute(f'DROP TABLE ledger."{segment.table}"')
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                # Readers and the owner hold the table for moments; whoever waits for it makes
                # all that come after wait too, so waiting is short and is tried again.
                log.warning("detach waits", log=segment.log, start=segment.start, attempt=attempt)
                await asyncio.sleep(_LOCK_TIMEOUT_MS / 1000)
            else:
                return
        raise SealError(
            f"log {segment.log}: the segment at {segment.start} is in use; it stays, try later"
        )


def batch_of(run: LeafRun) -> pa.RecordBatch:
    """Leaves as rows of a segment's file."""
    return pa.RecordBatch.from_arrays(
        [pa.array(np.arange(run.first, run.end)), *described(run), leaves_of(run)],
        schema=archives.SCHEMA,
    )


async def seal_due(
    sealer: Sealer, pool: Any, policy: Policy, most: int
) -> tuple[list[Result], Exception | None]:
    """Seal up to `most` segments that are due; a log with an error is left, the others go on.

    Errors: SealError when another sealer works.
    """
    done: list[Result] = []
    failed: Exception | None = None
    broken: set[int] = set()
    async with pool.acquire() as db:
        if not await db.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            raise SealError("another sealer works on this database")
        try:
            for segment in (await sealer.due(policy))[:most]:
                if segment.log_id in broken:
                    continue
                try:
                    done.append(await sealer.seal(segment))
                except (SealError, archives.ArchiveError, BrokenLogError) as error:
                    log.error("NOT SEALED", log=segment.log, problem=str(error))
                    broken.add(segment.log_id)
                    failed = failed or error
        finally:
            await db.execute("SELECT pg_advisory_unlock($1)", _LOCK)
    return done, failed
