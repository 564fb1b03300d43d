"""The publisher: each log's new entries, once signed, into the tile store.

Asks the ledger over gRPC as anybody may, makes the tiles anew out of the leaf
bytes and publishes a checkpoint only when they give the root that it signs; so
a store never shows a checkpoint that its own tiles do not bear out. What a
checkpoint needs is written before it. Owns no state: where it stands is read
out of the store, and a store whose edge does not fit its own checkpoint is
written again from the log's beginning.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from kernel import leaf as leaf_format
from kernel import tiles
from kernel.note import NoteError, parse_checkpoint, split_note
from kernel.placement import partition_of_log
from kernel.tilebuilder import CHECKPOINT_PATH, TileBuilder, TileFile
from ledger.adapters.tile_store import (
    PINS_PATH,
    TileStore,
    aside_path,
    format_pins,
    log_prefix,
    parse_pins,
)
from tollbook.ledger.v1 import ledger_pb2 as pb

log = structlog.get_logger()

_BATCH: Final = 5_000
_CALL_TIMEOUT_S: Final = 10.0
_READ_TIMEOUT_S: Final = 3_600.0
_WRITES_AT_ONCE: Final = 16
_MAX_WAITING_FILES: Final = 256
_LIST_EVERY_S: Final = 3.0
"""New logs are rare."""


class NotTheSignedError(RuntimeError):
    """The entries of a log do not give the root that its checkpoint signs."""


class LedgerAwayError(RuntimeError):
    """The ledger does not answer now."""


@dataclass
class _Published:
    """A log as the store has it."""

    builder: TileBuilder
    note: bytes
    pins: list[tuple[int, int]]
    """Of a usage log: (from position, control size), which no entry says."""
    pins_kept: int
    """How many of them stand in the store."""


class Publisher:
    """Brings the store up to the newest checkpoints."""

    def __init__(self, ledger: Any, store: TileStore) -> None:
        """`ledger`: a stub of LedgerService."""
        self._ledger = ledger
        self._store = store
        self._logs: dict[str, _Published] = {}
        self._names: list[str] = []
        self._listed_at = -_LIST_EVERY_S

    async def publish_grown(self) -> int:
        """Publish what is signed and not yet there; gives how many logs had news.

        Errors: LedgerAwayError, StoreUnusableError, NotTheSignedError.
        """
        try:
            now = asyncio.get_running_loop().time()
            if now - self._listed_at >= _LIST_EVERY_S:
                listed = await self._ledger.ListLogs(
                    pb.ListLogsRequest(without_pins=True), timeout=_CALL_TIMEOUT_S
                )
                self._names = [state.log for state in listed.logs]
                self._listed_at = now
            grown = 0
            wrong: list[str] = []
            for name in self._names:
                try:
                    grown += await self._publish(name)
                except NotTheSignedError as error:
                    self._logs.pop(name, None)
                    wrong.append(str(error))
            if wrong:
                raise NotTheSignedError("; ".join(wrong))
            return grown
        except grpc.aio.AioRpcError as error:
            # What was read half is thrown away; the store tells where to go on.
            self._logs.clear()
            raise LedgerAwayError(error.details() or error.code().name) from None
        except BaseException:
            self._logs.clear()
            raise

    async def _publish(self, name: str) -> bool:
        try:
            signed = await self._ledger.GetCheckpoint(
                pb.GetCheckpointRequest(log=name), timeout=_CALL_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and "signed" in (error.details() or ""):
                return False
            raise
        published = self._logs.get(name)
        if published is None:
            published = self._logs[name] = await self._resume(name)
        if published.note == signed.note:
            return False
        builder = published.builder
        if signed.size < builder.size:
            raise NotTheSignedError(
                f"log {name}: {builder.size} entries are published, the newest checkpoint signs"
                f" {signed.size}: the log shrank"
            )
        before = builder.size
        await self._write_new(name, published, signed.size)
        if builder.root() != signed.root:
            raise NotTheSignedError(
                f"log {name}: its entries give the root {builder.root().hex()} at size"
                f" {signed.size}, its checkpoint signs {signed.root.hex()}"
            )
        await self._put_all(name, list(builder.partial()))
        if len(published.pins) != published.pins_kept:
            await self._store.put(log_prefix(name) + PINS_PATH, format_pins(published.pins))
            published.pins_kept = len(published.pins)
        await self._store.put(log_prefix(name) + CHECKPOINT_PATH, signed.note)
        await self._drop_partials(name, before, signed.size)
        published.note = signed.note
        return True

    async def _write_new(self, name: str, published: _Published, end: int) -> None:
        """Read entries up to `end` and write what they complete."""
        builder, pins = published.builder, published.pins
        is_usage = partition_of_log(name) is not None
        if builder.size == end:
            return
        request = pb.ReadEventsRequest(
            log=name, from_position=builder.size, to_position=end, max_batch=_BATCH
        )
        files: list[TileFile] = []
        async for answer in self._ledger.ReadEvents(request, timeout=_READ_TIMEOUT_S):
            if answer.first_position != builder.size:
                raise NotTheSignedError(
                    f"log {name}: position {answer.first_position} came where {builder.size} is"
                    " next"
                )
            known = pins[-1][1] if pins else -1
            if is_usage and answer.leaves and answer.control_size != known:
                pins.append((builder.size, answer.control_size))
            for position, leaf in enumerate(answer.leaves, builder.size):
                try:
                    files += builder.append(leaf)
                    read = leaf_format.decode(leaf)
                except ValueError as error:
                    raise NotTheSignedError(f"log {name} position {position}: {error}") from None
                if read.aside:
                    await self._put_aside(name, position, leaf_format.aside_of(read.value)[0])
            if len(files) >= _MAX_WAITING_FILES:
                await self._put_all(name, files)
                files = []
        await self._put_all(name, files)
        if builder.size != end:
            raise NotTheSignedError(
                f"log {name}: the ledger gave {builder.size} entries of the {end} that are signed"
            )

    async def _put_aside(self, name: str, position: int, digest: bytes) -> None:
        entry = await self._ledger.GetEntry(
            pb.GetEntryRequest(log=name, position=position), timeout=_CALL_TIMEOUT_S
        )
        await self._store.put(aside_path(digest), entry.aside)

    async def _put_all(self, name: str, files: list[TileFile]) -> None:
        prefix = log_prefix(name)
        room = asyncio.Semaphore(_WRITES_AT_ONCE)

        async def put(file: TileFile) -> None:
            async with room:
                await self._store.put(prefix + file.path, file.data)

        await asyncio.gather(*(put(file) for file in files))

    async def _drop_partials(self, name: str, before: int, now: int) -> None:
        """Remove the partial tiles that became full: whoever still asks gets the full one."""
        gone: list[str] = []
        level, old, new = 0, before, now
        while new:
            index = old // tiles.TILE_WIDTH
            if old % tiles.TILE_WIDTH and new // tiles.TILE_WIDTH > index:
                paths = [tiles.tile_path(level, index)]
                paths += [tiles.bundle_path(index)] if level == 0 else []
                for path in paths:
                    gone += await self._store.names(f"{log_prefix(name)}{path}.p/")
            level, old, new = level + 1, old // tiles.TILE_WIDTH, new // tiles.TILE_WIDTH
        await self._store.delete(gone)

    async def _resume(self, name: str) -> _Published:
        """What the store has of a log; nothing when that is not whole at its edge."""
        prefix = log_prefix(name)
        note = await self._store.get(prefix + CHECKPOINT_PATH)
        if note is None:
            return _Published(TileBuilder(), b"", [], 0)
        try:
            text, _ = split_note(note)
            checkpoint = parse_checkpoint(text)
            builder = await _load_edge(self._store, prefix, checkpoint.size)
            if builder.root() != checkpoint.root:
                raise ValueError("its edge does not give the checkpoint's root")
            pins = parse_pins(await self._store.get(prefix + PINS_PATH) or b"")
            if checkpoint.size and partition_of_log(name) is not None and not pins:
                raise ValueError("its pins are not there")
        except (NoteError, ValueError) as error:
            log.error("published tiles are not whole: written again", log=name, why=str(error))
            return _Published(TileBuilder(), b"", [], 0)
        # A crash may have left pins of entries that the checkpoint does not have yet.
        pins = [pin for pin in pins if pin[0] < checkpoint.size]
        return _Published(builder, note, pins, len(pins))


async def _load_edge(store: TileStore, prefix: str, size: int) -> TileBuilder:
    """The builder that goes on at the edge of published tiles. Errors: ValueError."""
    index, width = divmod(size, tiles.TILE_WIDTH)
    leaves: list[bytes] = []
    if width:
        data = await store.get(prefix + tiles.bundle_path(index, width))
        leaves = tiles.decode_bundle(data or b"")
    hashes: dict[tuple[int, int, int], bytes] = {}
    for level, at, wide in tiles.tiles_of(size):
        if wide < tiles.TILE_WIDTH:
            found = await store.get(prefix + tiles.tile_path(level, at, wide))
            hashes[level, at, wide] = found or b""
    return TileBuilder.resume(size, leaves, lambda *key: hashes[key])
