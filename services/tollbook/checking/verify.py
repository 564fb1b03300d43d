"""Checks the ledger's database against everything that was ever said of it, and names positions.

Each log's rows are held against its tiles and head, against every signed
checkpoint, the signer's memory, the published tiles and, where Kafka still has
them, the records themselves; then what lies beside the log against the log:
idempotency keys, records aside, exceptions, pins, counts. All is read in one
snapshot, so a ledger that is running can be checked.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg
from google.protobuf.message import DecodeError

from audit.findings import Finding, Findings
from audit.log_check import LogResult, check_files
from kernel import leaf as leaf_format
from kernel.errors import FailedPrecondition, Unavailable
from kernel.keychain import KeyChain
from kernel.leaf import LeafError
from kernel.note import Checkpoint, NoteError, VerifierKey, open_checkpoint
from kernel.placement import CONTROL_LOG, CUT_LOG, partition_of_log
from kernel.tilebuilder import CHECKPOINT_PATH
from kernel.tiles import decode_bundle
from ledger.adapters import database
from ledger.adapters.archive import Archive, ArchiveError
from ledger.adapters.signing import Memory, MemoryFileError, Signed
from ledger.adapters.tile_store import (
    PINS_PATH,
    StoreUnusableError,
    TileStore,
    log_prefix,
    parse_pins,
)
from ledger.domain.admission import CONFLICT, REJECTED
from ledger.domain.rotation import rotation_of
from tollbook.checking.database_log import DatabaseLog, Published, SealedRows
from tollbook.checking.records import RecordCheck
from tollbook.pricing.v1 import control_pb2

_GUARDED: Final = (
    "log_chunk",
    "log_tile",
    "log_pin",
    "checkpoint",
    "log_aside",
    "append_key",
    "log_exception",
    "log_segment",
    "log_detached",
)
_COMMAND_TIMEOUT_S: Final = 120.0


Pin = tuple[int, int]
"""(from position, control size)"""


class Anchor(NamedTuple):
    """A tree that somebody vouched for: its size and root, and who."""

    size: int
    root: bytes
    source: str


@dataclass
class Sources:
    """What the database is held against."""

    keys: Sequence[VerifierKey]
    memory: Path | None = None
    tiles: TileStore | None = None
    kafka: str = ""
    topic: str = ""
    segments: str = ""
    """Where sealed segments are, a directory or a URL; empty: there are none."""


@dataclass
class Verdict:
    """What was found."""

    findings: Findings = field(default_factory=Findings)
    sizes: dict[str, int] = field(default_factory=dict)
    roots: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not len(self.findings)


class _Said(NamedTuple):
    """What was said outside the database, read before it: the logs grow meanwhile."""

    remembered: Mapping[str, Signed]
    """By origin."""
    published: Mapping[str, bytes]
    """Checkpoints by log."""
    pins: Mapping[str, bytes]
    """Published pins by log."""


async def _said(sources: Sources) -> _Said:
    published: dict[str, bytes] = {}
    pins: dict[str, bytes] = {}
    if sources.tiles is not None:
        for log in {key.name.rpartition("/")[2] for key in sources.keys}:
            note = await sources.tiles.get(log_prefix(log) + CHECKPOINT_PATH)
            if note is not None:
                published[log] = note
            pins[log] = await sources.tiles.get(log_prefix(log) + PINS_PATH) or b""
    remembered: Mapping[str, Signed] = {}
    if sources.memory is not None:
        try:
            remembered = Memory(sources.memory).all()
        except MemoryFileError as error:
            raise FailedPrecondition(str(error), reason="MEMORY_UNREADABLE") from None
    return _Said(remembered, published, pins)


async def verify(dsn: str, sources: Sources) -> Verdict:
    """Check every log.

    Errors: Unavailable, FailedPrecondition (no ledger in this database, a DSN
    that is none or is refused, or a memory file that cannot be read).
    """
    try:
        said = await _said(sources)
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


class _Leaves:
    """What the entries say of what must stand beside the log."""

    def __init__(self, log: str, records: RecordCheck | None) -> None:
        self._log = log
        self._is_usage = partition_of_log(log) is not None
        self._records = records
        self.pins: dict[str, list[Pin]] = {}
        """What cuts say, where this is the cut log."""
        self.asides: dict[int, tuple[bytes, int]] = {}
        self.keys: dict[str, tuple[int, bytes]] = {}
        self.exceptions: set[tuple[int, int, int]] = set()

    def look(self, first: int, entries: list[bytes]) -> None:
        """Take a bundle's entries in."""
        for position, data in enumerate(entries, first):
            try:
                leaf = leaf_format.decode(data)
                digest = hashlib.sha256(leaf.value).digest()
                if leaf.aside:
                    digest, length = leaf_format.aside_of(leaf.value)
                    self.asides[position] = (digest, length)
            except LeafError:
                continue
            if self._log == CUT_LOG and not leaf.aside:
                self._take_cut(leaf.value)
            if not self._is_usage:
                self.keys[leaf.key.decode("utf-8", "replace")] = (position, digest)
            elif leaf.disposition in (CONFLICT, REJECTED):
                self.exceptions.add((position, leaf.disposition, leaf.reason))
            if self._records is not None:
                self._records.look(position, leaf, data)

    def _take_cut(self, value: bytes) -> None:
        try:
            cut = control_pb2.Cut.FromString(value)
        except DecodeError:
            return
        for part in cut.logs:
            pins = self.pins.setdefault(part.log, [])
            del pins[part.earlier_pins :]
            pins += [(pin.from_position, pin.control_size) for pin in part.pins]


class _Verification:
    def __init__(self, db: Any, sources: Sources, said: _Said) -> None:
        self.verdict = Verdict()
        self._said = said
        self._db = db
        self._sources = sources
        self._loop = asyncio.get_running_loop()
        self._keys: dict[str, list[VerifierKey]] = {}
        for key in sources.keys:
            self._keys.setdefault(key.name, []).append(key)
        self._chains: dict[str, KeyChain] = {}
        self._cut_pins: dict[str, list[Pin]] = {}
        where = sources.segments
        self._sealed = SealedRows(db, Archive(where)) if where else None

    async def all(self) -> None:
        """Every check, in the order of cause and effect."""
        await self._triggers()
        heads = await self._db.fetch("SELECT * FROM log_head ORDER BY log_id")
        await self._follow_keys(heads)
        for head in heads:
            await self._log(head)
        await self._strangers(heads)

    def _found(
        self, log: str, what: str, position: int | None = None, end: int | None = None
    ) -> None:
        self.verdict.findings.add(Finding(log, what, position, end))

    # Before the logs ------------------------------------------------------------

    async def _triggers(self) -> None:
        """That the tables still refuse changes: a superuser may have switched it off."""
        rows = await self._db.fetch(
            "SELECT c.relname, count(*) FILTER (WHERE t.tgenabled = 'A') = 2 AS guarded"
            " FROM (SELECT to_regclass('ledger.' || name) AS root FROM unnest($1::text[]) name) g"
            " CROSS JOIN LATERAL ("
            "  SELECT g.root AS relid UNION SELECT relid FROM pg_partition_tree(g.root)) AS part"
            " JOIN pg_class c ON c.oid = part.relid"
            " LEFT JOIN pg_trigger t ON t.tgrelid = c.oid"
            "  AND t.tgname IN ('refuse_rows', 'refuse_truncate')"
            " GROUP BY c.relname ORDER BY c.relname",
            list(_GUARDED),
        )
        for name, guarded in rows:
            if not guarded:
                self._found(name, "its triggers against changes are switched off or gone")

    async def _follow_keys(self, heads: Sequence[Any]) -> None:
        """Extend the keys by those that the control log leads to."""
        rotations = []
        for head in heads:
            if head["name"] != CONTROL_LOG:
                continue
            rows = await self._db.fetch(
                "SELECT first_position, leaves FROM log_chunk WHERE log_id = $1"
                " AND position('\\xf201'::bytea in leaves) > 0 ORDER BY first_position",
                head["log_id"],
            )
            for first, data in rows:
                rotations += _rotations_in(first, data)
        for name, keys in list(self._keys.items()):
            chain = KeyChain(name.rpartition("/")[0], {key.public for key in keys})
            for position, rotation in rotations:
                chain.take(position, rotation)
            self._keys[name] = chain.keys(name)

    # One log --------------------------------------------------------------------

    async def _log(self, head: Any) -> None:
        name, size = head["name"], head["size"]
        anchors = await self._anchors(head)
        beyond = max(anchors, key=lambda anchor: anchor.size, default=None)
        if beyond is not None and beyond.size > size:
            self._found(
                name,
                f"{beyond.source} has {beyond.size} entries, the head {size}: the rest is gone",
                size,
                beyond.size,
            )
        await self._rows_beyond(head)
        tiles = self._published_tiles(name)
        log = DatabaseLog(name, head["log_id"], size, self._db, self._loop, tiles, self._sealed)
        is_usage = partition_of_log(name) is not None
        records = None
        if is_usage and self._sources.kafka:
            records = RecordCheck(self._sources.kafka, self._sources.topic, name, self._loop)
            await records.start(head["next_offset"])
        leaves = _Leaves(name, records)
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
        self._tree(head, log, result, anchors)
        if records is not None:
            self.verdict.findings.extend(records.findings)
            self.verdict.notes += records.notes
        if name == CUT_LOG:
            # Its number is before those of the usage logs, of which it speaks.
            self._cut_pins = leaves.pins
        await self._beside(head, leaves, result)

    def _tree(
        self, head: Any, log: DatabaseLog, result: LogResult, anchors: Sequence[Anchor]
    ) -> None:
        """What rows, tiles and roots tell, the exact places first."""
        name, size = head["name"], head["size"]
        exact = [*log.findings]
        whole = None
        for finding in result.findings:
            if (finding.position, finding.end_position) == (0, size) and size > 1:
                whole = finding
            elif not any(
                finding.position is not None
                and other.position is not None
                and other.position <= finding.position < (other.end_position or other.position + 1)
                for other in exact
            ):
                exact.append(finding)
        agreed = 0
        for anchor in sorted(anchors):
            if anchor.size > size:
                continue
            if result.roots.get(anchor.size) == anchor.root:
                agreed = anchor.size
                continue
            if not any(_is_within(finding, agreed, anchor.size) for finding in exact):
                exact.append(
                    Finding(
                        name,
                        f"the entries give another root at size {anchor.size} than {anchor.source}",
                        agreed,
                        anchor.size,
                    )
                )
            whole = None
            break
        else:
            if whole is not None:
                exact.append(
                    Finding(name, "the entries give another root than the head", agreed, size)
                )
        if result.root == head["root"] and not exact:
            return
        self.verdict.findings.extend(exact)
        if not exact:
            self._found(
                name,
                f"the head's root is {head['root'].hex()}, the entries give {result.root.hex()}",
                agreed,
                size,
            )

    async def _rows_beyond(self, head: Any) -> None:
        row = await self._db.fetchrow(
            "SELECT min(greatest(first_position, $2)) AS first,"
            " max(first_position + entries) AS end FROM log_chunk"
            " WHERE log_id = $1 AND first_position + entries > $2",
            head["log_id"],
            head["size"],
        )
        if row["first"] is not None:
            self._found(
                head["name"],
                f"rows of log_chunk hold it, and the head ends at {head['size']}: appended by hand",
                row["first"],
                row["end"],
            )

    # Who vouched ------------------------------------------------------------------

    async def _anchors(self, head: Any) -> list[Anchor]:
        name = head["name"]
        origins = [key for key in self._keys if key.endswith(f"/{name}")]
        if not origins:
            self.verdict.notes.append(f"{name}: no verifier key of this log was given")
        anchors: list[Anchor] = []
        rows = await self._db.fetch(
            "SELECT size, root, note FROM checkpoint WHERE log_id = $1 ORDER BY size",
            head["log_id"],
        )
        for size, root, note in rows:
            opened = self._open(note, origins)
            if opened is None:
                if origins:
                    self._found(
                        f"{name} checkpoint {size}", "no key given signed it; it was altered"
                    )
                continue
            if (opened.size, opened.root) != (size, root):
                self._found(f"{name} checkpoint {size}", "its row is not what its signed text says")
            anchors.append(Anchor(opened.size, opened.root, "the signed checkpoint"))
        anchors += [
            Anchor(*self._said.remembered[origin], "the signer's memory")
            for origin in origins
            if origin in self._said.remembered
        ]
        published = self._published(name)
        if published is not None:
            anchors.append(published)
        return anchors

    def _open(self, note: bytes, origins: Sequence[str]) -> Checkpoint | None:
        for origin in origins:
            for key in self._keys[origin]:
                try:
                    return open_checkpoint(note, key)
                except NoteError:
                    continue
        return None

    def _published(self, name: str) -> Anchor | None:
        note = self._said.published.get(name)
        opened = None
        if note is not None:
            opened = self._open(note, [key for key in self._keys if key.endswith(f"/{name}")])
        if opened is None:
            return None
        return Anchor(opened.size, opened.root, "the published checkpoint")

    def _published_tiles(self, name: str) -> Published | None:
        store, anchor = self._sources.tiles, self._published(name)
        if store is None or anchor is None:
            return None
        return Published(anchor.size, lambda path: store.get(log_prefix(name) + path))

    # What lies beside the log ---------------------------------------------------

    async def _beside(self, head: Any, leaves: _Leaves, result: LogResult) -> None:
        name, log_id = head["name"], head["log_id"]
        counted = result.counts
        counts = (counted.accepted, counted.duplicate, counted.conflict, counted.rejected)
        told = (head["accepted"], head["duplicate"], head["conflict"], head["rejected"])
        if counts != told and result.readable == result.size:
            self._found(name, f"the head counts {told} by disposition, the entries are {counts}")
        await self._asides(name, log_id, leaves, result)
        await self._keys_of_appends(name, log_id, leaves, result)
        rows = await self._db.fetch(
            "SELECT position, disposition, reason FROM log_exception WHERE log_id = $1", log_id
        )
        for position, *_ in sorted(leaves.exceptions ^ {tuple(row) for row in rows}):
            if position < result.readable:
                self._found(name, "log_exception does not say what the entry is", position)
        await self._pins(name, head)

    async def _asides(self, name: str, log_id: int, leaves: _Leaves, result: LogResult) -> None:
        rows = await self._db.fetch(
            "SELECT position, sha256(value) AS digest, length(value) AS length FROM log_aside"
            " WHERE log_id = $1",
            log_id,
        )
        there = {row["position"]: (row["digest"], row["length"]) for row in rows}
        for position in sorted(there.keys() | leaves.asides.keys()):
            if position >= result.readable or there.get(position) == leaves.asides.get(position):
                continue
            if position not in there:
                what = "its record stands aside, and log_aside lacks it"
            elif position not in leaves.asides:
                what = "log_aside holds a record that the entry does not speak of"
            else:
                what = "log_aside holds another record than the entry speaks of"
            self._found(name, what, position)

    async def _keys_of_appends(
        self, name: str, log_id: int, leaves: _Leaves, result: LogResult
    ) -> None:
        rows = await self._db.fetch(
            "SELECT idempotency_key, position, payload_digest FROM append_key WHERE log_id = $1",
            log_id,
        )
        there = {row[0]: (row[1], row[2]) for row in rows}
        for key in sorted(there.keys() | leaves.keys.keys()):
            own, entry = there.get(key), leaves.keys.get(key)
            if own == entry:
                continue
            position = (entry or own or (0, b""))[0]
            if position >= result.readable:
                continue
            if own is None:
                what = "no idempotency key leads to it: it did not come through Append"
            elif entry is None:
                what = f"the idempotency key {key!r} leads to it, and it is another's entry"
            else:
                what = f"append_key says other things of the key {key!r} than the entry"
            self._found(name, what, position)

    async def _pins(self, name: str, head: Any) -> None:
        if partition_of_log(name) is None:
            return
        rows = await self._db.fetch(
            "SELECT from_position, control_size FROM log_pin WHERE log_id = $1"
            " ORDER BY from_position",
            head["log_id"],
        )
        pins = [(row[0], row[1]) for row in rows]
        if head["size"] and (not pins or pins[0][0] != 0):
            self._found(name, "it has no pin from position 0 on")
        last = -1
        for position, control_size in pins:
            if position >= head["size"]:
                self._found(name, f"a pin is beyond the log's end {head['size']}", position)
            if control_size <= last and position:
                self._found(name, "its pin does not grow", position)
            last = control_size
        self._compare_pins(name, head["size"], pins, self._cut_pins.get(name, []), "the cut log")
        try:
            published = parse_pins(self._said.pins.get(name, b""))
        except ValueError:
            self._found(name, "its published pins cannot be read")
            return
        self._compare_pins(name, head["size"], pins, published, "what was published")

    def _compare_pins(
        self, name: str, size: int, pins: Sequence[Pin], told: Sequence[Pin], source: str
    ) -> None:
        """Pins never change, so what was told of them once is how they begin."""
        for number, pin in enumerate(told):
            if pin[0] < size and (number >= len(pins) or pins[number] != pin):
                self._found(name, f"its pin is not the one of {source}", pin[0])
                return

    async def _strangers(self, heads: Sequence[Any]) -> None:
        known = [head["log_id"] for head in heads]
        for table in ("log_chunk", "log_tile", "checkpoint", "log_pin"):
            rows = await self._db.fetch(
                f"SELECT DISTINCT log_id FROM {table} WHERE log_id <> ALL($1)",  # noqa: S608
                known,
            )
            for row in rows:
                self._found(table, f"it has rows of a log {row[0]} that has no head")


def _is_within(finding: Finding, start: int, end: int) -> bool:
    return finding.position is not None and start <= finding.position < end


def _rotations_in(first: int, data: bytes) -> list[Any]:
    found = []
    try:
        for position, leaf in enumerate(decode_bundle(data), first):
            rotation = rotation_of(leaf_format.decode(leaf))
            if rotation is not None:
                found.append((position, rotation))
    except (ValueError, LeafError):
        return found
    return found
