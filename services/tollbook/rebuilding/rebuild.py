"""Brings a ledger's database up to signed checkpoints: from nothing, or from a restored backup.

Every log is first surveyed (survey.py), up to what was published of it
(published.py); then the entries that the database lacks are written in batches
(batches.py) by the ledger's own statements, under its own fence. The pins come
out as they were because the logs are written in the order in which they came to
be: control up to a pin's size, then the usage entries of that pin, and so on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import structlog

from kernel.errors import FailedPrecondition, Unavailable
from kernel.migrations import MigrationError
from kernel.note import VerifierKey
from kernel.placement import CONTROL_LOG, partition_of_log
from ledger.adapters import database, store, stored
from ledger.adapters.migrate import SCHEMA
from ledger.adapters.notify import CHANNEL
from ledger.adapters.store import BrokenLogError, FencedError, Head
from ledger.adapters.tile_store import StoreUnusableError, TileStore
from tollbook.rebuilding.batches import Log, batch_of
from tollbook.rebuilding.published import Published
from tollbook.rebuilding.sources import Entry, KafkaSource, Source, TilesSource
from tollbook.rebuilding.survey import survey

_logger = structlog.get_logger()

_LEASE_MS: Final = 60_000


@dataclass
class Rebuilt:
    """What was done to a log."""

    log: str
    before: int
    size: int
    root: bytes


async def rebuild(
    dsn: str,
    origin: str,
    tiles: TileStore,
    keys: Sequence[VerifierKey],
    *,
    kafka: str = "",
    topic: str = "",
) -> list[Rebuilt]:
    """Bring every log up to its published checkpoint; with `kafka`, usage logs from there.

    Errors: FailedPrecondition when something differs (nothing is written then) or
    an owner of a log still lives; Unavailable when a part does not answer.
    """
    db = await database.connect_once(dsn, "tollbook-rebuild", database.COMMAND_TIMEOUT_S)
    try:
        await SCHEMA.check_version(db)
        run = _Rebuild(db, origin, tiles, keys, kafka, topic)
        try:
            return await run.all()
        finally:
            await run.release()
    except database.AWAY as error:
        raise Unavailable(f"the database failed: {error}; run it again") from None
    except (MigrationError, FencedError, BrokenLogError) as error:
        raise FailedPrecondition(str(error), reason="LEDGER_UNUSABLE") from None
    except asyncpg.PostgresError as error:
        raise FailedPrecondition(f"the database refuses: {error}", reason="REFUSED") from None
    except StoreUnusableError as error:
        raise Unavailable(str(error)) from None
    finally:
        db.terminate()


class _Rebuild:
    def __init__(
        self,
        db: Any,
        origin: str,
        tiles: TileStore,
        keys: Sequence[VerifierKey],
        kafka: str,
        topic: str,
    ) -> None:
        self._db = db
        self._published = Published(tiles, origin, keys)
        self._tiles = tiles
        self._kafka = kafka
        self._topic = topic
        self._owner = f"rebuild-{socket.gethostname()}-{os.getpid()}"
        self._logs: dict[str, Log] = {}
        self._taken: list[Head] = []

    async def release(self) -> None:
        """Give back whatever was taken over, as far as the database can be reached."""
        try:
            for head in self._taken:
                await store.release(self._db, head.log_id, head.epoch)
        except database.AWAY as error:
            _logger.warning("not given back; the lease ends by itself", error=repr(error))

    async def all(self) -> list[Rebuilt]:
        """Survey everything, then write."""
        before: dict[str, int] = {}
        for name in await self._published.names():
            log = await self._open(name)
            if log is not None:
                self._logs[name] = log
                before[name] = log.head.size
        await self._write_all()
        done: list[Rebuilt] = []
        for name, log in self._logs.items():
            await self._finish(log)
            done.append(Rebuilt(name, before[name], log.position, log.tree.root()))
        await self._db.execute(f"NOTIFY {CHANNEL}")
        return done

    async def _open(self, name: str) -> Log | None:
        """Survey a log and take it over; None when the database has all of it already."""
        checkpoint, note = await self._published.checkpoint(name)
        log_id = await store.open_log(self._db, name)
        head = await store.take_over(self._db, log_id, self._owner, _LEASE_MS)
        if head is None:
            raise FailedPrecondition(
                f"log {name} has an owner that lives: stop the ledger's workers first",
                reason="OWNER_LIVES",
            )
        self._taken.append(head)
        if head.size >= checkpoint.size:
            return None
        source = self._source(name)
        surveyed = await survey(name, source, checkpoint, head.size, head.root)
        tree = await stored.load_tree(self._db, head)
        pins = await self._published.pins(name, checkpoint.size)
        return Log(
            name,
            checkpoint,
            note,
            head,
            tree,
            source,
            pins,
            surveyed,
            head.next_offset,
            opened_to=head.opened_to,
        )

    def _source(self, name: str) -> Source:
        if self._kafka and partition_of_log(name) is not None:
            return KafkaSource(self._kafka, self._topic, name)
        return TilesSource(self._tiles, name)

    # Writing ----------------------------------------------------------------------

    async def _write_all(self) -> None:
        control = self._logs.get(CONTROL_LOG)
        steps = sorted(
            (
                (pin, name)
                for name, log in self._logs.items()
                if partition_of_log(name) is not None
                for pin, _, _ in log.stretches()
            ),
        )
        held: int = await self._db.fetchval(
            "SELECT size FROM log_head WHERE name = $1", CONTROL_LOG
        )
        if steps and steps[0][0] < held:
            raise FailedPrecondition(
                f"{steps[0][1]} lacks entries that knew {steps[0][0]} control records, and the"
                f" database has {held} already, to which they would be pinned: begin with an empty"
                " schema",
                reason="PIN_PASSED",
            )
        for control_size, name in steps:
            if control is not None:
                await self._write(control, min(control_size, control.checkpoint.size))
            log = self._logs[name]
            end = next(end for pin, _, end in log.stretches() if pin == control_size)
            await self._write(log, end)
        for log in self._logs.values():
            await self._write(log, log.checkpoint.size)

    async def _write(self, log: Log, end: int) -> None:
        """Write a log's entries up to `end`."""
        while log.position < end:
            await self._commit(log, await log.next_entries(end))

    async def _commit(self, log: Log, entries: list[Entry]) -> None:
        batch, keys = batch_of(log, entries)
        if log.opened_to < batch.size:
            log.opened_to = await store.open_segments(self._db, log.head.log_id, batch.size)
        if partition_of_log(log.name) is None:
            await store.write_append(self._db, log.head, batch, keys, _LEASE_MS)
        else:
            await store.write_usage(self._db, log.head, batch, _LEASE_MS)
        log.next_offset = batch.next_offset

    async def _finish(self, log: Log) -> None:
        if log.stream is not None:
            await log.stream.aclose()
        if (log.position, log.tree.root()) != (log.checkpoint.size, log.checkpoint.root):
            raise FailedPrecondition(
                f"log {log.name} was changed while it was rebuilt", reason="SOURCE_DIFFERS"
            )
        await self._db.execute(
            "INSERT INTO checkpoint (log_id, size, root, note) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (log_id, size) DO NOTHING",
            log.head.log_id,
            log.checkpoint.size,
            log.checkpoint.root,
            log.note,
        )
