"""Brings a ledger's database up to signed checkpoints: from nothing, or from a restored backup.

Every log is first surveyed (survey.py); then the entries that the database lacks
are written by the ledger's own statements, under its own fence. The pins come
out as they were because the logs are written in the order in which they came to
be: control up to a pin's size, then the usage entries of that pin, and so on.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import structlog

from kernel import leaf as leaf_format
from kernel.errors import FailedPrecondition, Unavailable
from kernel.merkle import leaf_hash
from kernel.migrations import MigrationError
from kernel.note import Checkpoint, NoteError, VerifierKey, open_checkpoint
from kernel.placement import CONTROL_LOG, CUT_LOG, partition_of_log
from kernel.tilebuilder import CHECKPOINT_PATH
from ledger.adapters import database, store, stored
from ledger.adapters.migrate import SCHEMA
from ledger.adapters.notify import CHANNEL
from ledger.adapters.store import BrokenLogError, FencedError, Head
from ledger.adapters.tile_store import (
    PINS_PATH,
    StoreUnusableError,
    TileStore,
    log_prefix,
    parse_pins,
)
from ledger.domain.appending import NewKey
from ledger.domain.batch import Batch, Exceptional, StreamRow, chunks_of
from ledger.domain.tree import TreeBuilder
from tollbook.pricing.v1 import control_pb2
from tollbook.rebuilding.sources import Entry, KafkaSource, Source, TilesSource
from tollbook.rebuilding.survey import Survey, survey

_logger = structlog.get_logger()

_LEASE_MS: Final = 60_000
_BATCH_ENTRIES: Final = 4_096
_BATCH_BYTES: Final = 8 * 1024 * 1024
_FOREVER: Final = 1 << 62

Pin = tuple[int, int]


@dataclass
class Rebuilt:
    """What was done to a log."""

    log: str
    before: int
    size: int
    root: bytes


@dataclass
class _Log:
    name: str
    checkpoint: Checkpoint
    note: bytes
    head: Head
    tree: TreeBuilder
    source: Source
    pins: Sequence[Pin]
    survey: Survey
    next_offset: int
    stream: AsyncGenerator[Entry, None] | None = None
    opened_to: int = 0

    @property
    def position(self) -> int:
        """Next position to be written."""
        return self.tree.size


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
        self._origin = origin
        self._tiles = tiles
        self._keys = keys
        self._kafka = kafka
        self._topic = topic
        self._owner = f"rebuild-{socket.gethostname()}-{os.getpid()}"
        self._logs: dict[str, _Log] = {}
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
        for name in await self._names():
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

    async def _names(self) -> list[str]:
        names = {
            key.name.rpartition("/")[2]
            for key in self._keys
            if key.name.rpartition("/")[0] == self._origin
        }
        found = [
            name
            for name in sorted(names)
            if await self._tiles.get(log_prefix(name) + CHECKPOINT_PATH) is not None
        ]
        if not found:
            raise FailedPrecondition(
                f"{self._tiles.url} has no checkpoint of a log of {self._origin}",
                reason="NOTHING_PUBLISHED",
            )
        # Control first: it is what usage is pinned to.
        return sorted(found, key=lambda name: (name != CONTROL_LOG, name))

    async def _open(self, name: str) -> _Log | None:
        """Survey a log and take it over; None when the database has all of it already."""
        note = await self._tiles.get(log_prefix(name) + CHECKPOINT_PATH) or b""
        checkpoint = self._verified(name, note)
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
        pins = await self._pins(name, checkpoint.size)
        return _Log(
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

    def _verified(self, name: str, note: bytes) -> Checkpoint:
        why = "no key of it was given"
        for key in self._keys:
            if key.name != f"{self._origin}/{name}":
                continue
            try:
                return open_checkpoint(note, key)
            except NoteError as error:
                why = str(error)
        raise FailedPrecondition(f"log {name}: {why}", reason="CHECKPOINT_NOT_SIGNED")

    def _source(self, name: str) -> Source:
        if self._kafka and partition_of_log(name) is not None:
            return KafkaSource(self._kafka, self._topic, name)
        return TilesSource(self._tiles, name)

    async def _pins(self, name: str, size: int) -> list[Pin]:
        """A usage log's pins: as published beside its tiles, else as the cuts have them."""
        if partition_of_log(name) is None:
            return []
        try:
            pins = parse_pins(await self._tiles.get(log_prefix(name) + PINS_PATH) or b"")
        except ValueError as error:
            raise FailedPrecondition(
                f"the pins of {name} cannot be read: {error}", reason="PINS_UNREADABLE"
            ) from None
        if not pins:
            pins = await self._pins_of_cuts(name)
        return [pin for pin in pins if pin[0] < size]

    async def _pins_of_cuts(self, name: str) -> list[Pin]:
        note = await self._tiles.get(log_prefix(CUT_LOG) + CHECKPOINT_PATH)
        if note is None:
            return []
        size = self._verified(CUT_LOG, note).size
        pins: list[Pin] = []
        end = 0
        async for entry in TilesSource(self._tiles, CUT_LOG).entries(size):
            leaf = leaf_format.decode(entry.leaf)
            cut = control_pb2.Cut.FromString(entry.aside or leaf.value)
            for part in cut.logs:
                if part.log == name:
                    del pins[part.earlier_pins :]
                    pins += [(pin.from_position, pin.control_size) for pin in part.pins]
                    end = part.size
        # What no cut speaks of is pinned to all that is known now, as a worker would do.
        return [*pins, (end, _FOREVER)] if pins else []

    # Writing ----------------------------------------------------------------------

    async def _write_all(self) -> None:
        control = self._logs.get(CONTROL_LOG)
        steps = sorted(
            (
                (pin, name)
                for name, log in self._logs.items()
                if partition_of_log(name) is not None
                for pin, _, _ in self._stretches(log)
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
            end = next(end for pin, _, end in self._stretches(log) if pin == control_size)
            await self._write(log, end)
        for log in self._logs.values():
            await self._write(log, log.checkpoint.size)

    @staticmethod
    def _stretches(log: _Log) -> list[tuple[int, int, int]]:
        """(control size, start, end) of what is to be written, pin by pin."""
        size = log.checkpoint.size
        pins = list(log.pins) or [(0, _FOREVER)]
        ends = [pin[0] for pin in pins[1:]] + [size]
        return [
            (control_size, max(start, log.head.size), min(end, size))
            for (start, control_size), end in zip(pins, ends, strict=True)
            if min(end, size) > max(start, log.head.size)
        ]

    async def _write(self, log: _Log, end: int) -> None:
        """Write a log's entries up to `end`."""
        if log.stream is None:
            log.stream = _from(log.source, log.checkpoint.size, log.head.size)
        while log.position < end:
            entries: list[Entry] = []
            size = 0
            while log.position + len(entries) < end and len(entries) < _BATCH_ENTRIES:
                entry = await anext(log.stream)
                entries.append(entry)
                size += len(entry.leaf) + len(entry.aside)
                if size > _BATCH_BYTES:
                    break
            await self._commit(log, entries)

    async def _commit(self, log: _Log, entries: list[Entry]) -> None:
        batch, keys = _batch_of(log, entries)
        if log.opened_to < batch.size:
            log.opened_to = await store.open_segments(self._db, log.head.log_id, batch.size)
        if partition_of_log(log.name) is None:
            await store.write_append(self._db, log.head, batch, keys, _LEASE_MS)
        else:
            await store.write_usage(self._db, log.head, batch, _LEASE_MS)
        log.next_offset = batch.next_offset

    async def _finish(self, log: _Log) -> None:
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


async def _from(source: Source, size: int, start: int) -> AsyncGenerator[Entry, None]:
    position = 0
    async with aclosing(source.entries(size)) as entries:
        async for entry in entries:
            if position >= start:
                yield entry
            position += 1


def _batch_of(log: _Log, entries: list[Entry]) -> tuple[Batch, list[NewKey]]:
    """The batch that these entries make, and, of an Append log, their idempotency keys."""
    is_usage = partition_of_log(log.name) is not None
    first = log.tree.size
    counts = [0, 0, 0, 0]
    asides: list[tuple[int, bytes]] = []
    exceptions: list[Exceptional] = []
    keys: list[NewKey] = []
    next_offset = log.next_offset
    for position, entry in enumerate(entries, first):
        leaf = leaf_format.decode(entry.leaf)
        counts[leaf.disposition - 1] += 1
        if leaf.aside:
            asides.append((position, entry.aside))
        if is_usage:
            next_offset = leaf.offset + 1
            if leaf.disposition > 2:
                exceptions.append(Exceptional(position, leaf.disposition, leaf.reason))
        else:
            next_offset = position + 1
            digest = hashlib.sha256(entry.aside if leaf.aside else leaf.value).digest()
            keys.append(NewKey(leaf.key.decode(), position, digest))
    data = [entry.leaf for entry in entries]
    made = log.tree.extend([leaf_hash(leaf) for leaf in data])
    root, frontier = log.tree.root_and_frontier()
    is_last = log.tree.size == log.checkpoint.size
    return (
        Batch(
            first_position=first,
            first_offset=log.next_offset,
            size=log.tree.size,
            next_offset=next_offset,
            root=root,
            frontier=frontier,
            chunks=chunks_of(first, data),
            tiles=made,
            counts=(counts[0], counts[1], counts[2], counts[3]),
            asides=asides,
            exceptions=exceptions,
            streams=_rows_of(log.survey) if is_last and is_usage else [],
        ),
        keys,
    )


def _rows_of(surveyed: Survey) -> list[StreamRow]:
    return [
        StreamRow(stream_id, state.next_seq, tuple(state.missing), state.closed_seq)
        for stream_id, state in surveyed.streams.items()
    ]
