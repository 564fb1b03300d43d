"""Checks the ledger's database against everything that was ever said of it, and names positions.

Each log's rows are held against its tiles and head (places.py), against every
signed checkpoint, the signer's memory, the published tiles (vouched.py) and,
where Kafka still has them, the records themselves (records.py); then what lies
beside the log against the log (beside.py). All is read in one snapshot, so a
ledger that is running can be checked.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg

from audit.log_check import check_files
from kernel.errors import FailedPrecondition, Unavailable
from kernel.note import Checkpoint
from kernel.placement import partition_of_log
from ledger.adapters import database
from ledger.adapters.archive import Archive, ArchiveError
from ledger.adapters.tile_store import StoreUnusableError
from tollbook.checking.beside import Beside
from tollbook.checking.database_log import DatabaseLog, SealedRows
from tollbook.checking.guards import check_rows_beyond, check_strangers, check_triggers
from tollbook.checking.leaves import Leaves
from tollbook.checking.places import differing
from tollbook.checking.records import RecordCheck
from tollbook.checking.sources import Said, Sources, said_of
from tollbook.checking.verdict import Verdict
from tollbook.checking.vouched import Vouched

_COMMAND_TIMEOUT_S: Final = 120.0


async def verify(dsn: str, sources: Sources) -> Verdict:
    """Check every log.

    Errors: Unavailable, FailedPrecondition (no ledger in this database, a DSN
    that is none or is refused, or a memory file that cannot be read).
    """
    try:
        said = await said_of(sources)
    except StoreUnusableError as error:
        raise Unavailable(str(error)) from None
    db = await database.connect_once(dsn, "tollbook-verify", _COMMAND_TIMEOUT_S)
    try:
        async with db.transaction(isolation="repeatable_read", readonly=True):
            # Before the snapshot, so that no segment is detached under it.
            await db.execute("LOCK TABLE log_chunk IN ACCESS SHARE MODE")
            run = _Verification(db, sources, said)
            await run.all()
            return run.verdict
    except asyncpg.UndefinedTableError as error:
        raise FailedPrecondition(f"there is no whole ledger in this database: {error}") from None
    except ArchiveError as error:
        raise FailedPrecondition(str(error), reason="SEGMENTS_UNUSABLE") from None
    except (asyncpg.PostgresError, OSError) as error:
        raise Unavailable(f"the database failed while it was read: {error}") from None
    except StoreUnusableError as error:
        raise Unavailable(str(error)) from None
    finally:
        db.terminate()


class _Verification:
    def __init__(self, db: Any, sources: Sources, said: Said) -> None:
        self.verdict = Verdict()
        self._db = db
        self._sources = sources
        self._vouched = Vouched(db, sources, said, self.verdict)
        self._beside = Beside(db, said, self.verdict)
        self._loop = asyncio.get_running_loop()
        where = sources.segments
        self._sealed = SealedRows(db, Archive(where)) if where else None

    async def all(self) -> None:
        """Every check, in the order of cause and effect."""
        await check_triggers(self._db, self.verdict)
        heads = await self._db.fetch("SELECT * FROM log_head ORDER BY log_id")
        await self._vouched.follow_keys(heads)
        for head in heads:
            await self._log(head)
        await check_strangers(self._db, self.verdict, heads)

    async def _log(self, head: Any) -> None:
        name, size = head["name"], head["size"]
        anchors = await self._vouched.anchors(head)
        beyond = max(anchors, key=lambda anchor: anchor.size, default=None)
        if beyond is not None and beyond.size > size:
            self.verdict.found(
                name,
                f"{beyond.source} has {beyond.size} entries, the head {size}: the rest is gone",
                size,
                beyond.size,
            )
        await check_rows_beyond(self._db, self.verdict, head)
        tiles = self._vouched.published_tiles(name)
        log = DatabaseLog(name, head["log_id"], size, self._db, self._loop, tiles, self._sealed)
        is_usage = partition_of_log(name) is not None
        records = None
        if is_usage and self._sources.kafka:
            records = RecordCheck(self._sources.kafka, self._sources.topic, name, self._loop)
            await records.start(head["next_offset"])
        leaves = Leaves(name, records)
        asides = {
            row["digest"]: row["value"]
            for row in await self._db.fetch(
                "SELECT sha256(value) AS digest, value FROM log_aside WHERE log_id = $1",
                head["log_id"],
            )
        }
        signed = next((anchor for anchor in anchors if anchor.size == size), None)
        root = head["root"] if signed is None else signed.root
        try:
            result = await asyncio.to_thread(
                check_files,
                log,
                asides.get,
                Checkpoint(name, size, root),
                frozenset(anchor.size for anchor in anchors),
                leaves.look,
            )
            if records is not None:
                await asyncio.to_thread(records.finish)
        finally:
            if records is not None:
                await records.stop()
        self.verdict.sizes[name] = size
        self.verdict.roots[name] = result.root
        self.verdict.notes += result.notes
        self.verdict.findings.extend(differing(head, log.findings, result, anchors))
        if records is not None:
            self.verdict.findings.extend(records.findings)
            self.verdict.notes += records.notes
        await self._beside.check(head, leaves, result)
