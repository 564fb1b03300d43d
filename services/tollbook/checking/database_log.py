"""One log as it stands in the database, in the form in which the auditor's check reads logs.

Owns the rows' geometry: which positions no row holds, which two rows hold, which
lie beyond the head. Where tiles were published elsewhere, those are what the
entries are held against, so that tiles altered together with their entries
show. Used from a thread; the database is asked on the loop that owns the
connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

from audit.findings import Finding, Findings
from kernel import tiles
from kernel.merkle import HASH_BYTES, leaf_hash
from ledger.adapters.archive import Archive, ArchiveError
from ledger.adapters.leaves import LeafReader
from ledger.adapters.store import BrokenLogError

T = TypeVar("T")
ReadTile = Callable[[str], Awaitable[bytes | None]]
"""Path of a tile below the log's prefix to its bytes, None when it is not there."""

_BUNDLES_AT_ONCE: Final = 64
_WAIT_S: Final = 120.0


class Published(NamedTuple):
    """Tiles that were published: how many entries they hold, and how to read them."""

    size: int
    read: ReadTile


class SealedRows:
    """Bundles whose rows were given up for the file of a sealed segment."""

    def __init__(self, db: Any, archive: Archive) -> None:
        self._leaves = LeafReader(db, archive)

    async def rows(self, log_id: int, index: int) -> list[tuple[int, int, bytes]]:
        """A bundle as one row, as log_chunk would hold it; none when it is not sealed.

        Errors: ArchiveError when its file cannot be read.
        """
        start = index * tiles.TILE_WIDTH
        try:
            leaves = await self._leaves.leaves(log_id, start, start + tiles.TILE_WIDTH)
        except ArchiveError:
            raise
        except BrokenLogError:
            return []
        return [(start, len(leaves), tiles.encode_bundle(leaves))]


class DatabaseLog:
    """The files of a log, out of its rows and the files of its sealed segments."""

    def __init__(
        self,
        log: str,
        log_id: int,
        size: int,
        db: Any,
        loop: asyncio.AbstractEventLoop,
        published: Published | None,
        sealed: SealedRows | None = None,
    ) -> None:
        self.log = log
        self.findings = Findings()
        self._log_id = log_id
        self._size = size
        self._db = db
        self._loop = loop
        self._published = published
        self._sealed = sealed
        self._rows: dict[int, list[tuple[int, int, bytes]]] = {}
        self._rows_first = self._rows_end = 0
        self._tiles: dict[tuple[int, int], bytes] = {}
        self._read = (-1, 0)
        self._leaves: list[bytes] = []

    def _ask(self, what: Awaitable[T]) -> T:
        async def asked() -> T:
            return await what

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result(_WAIT_S)

    # Entries --------------------------------------------------------------------

    def bundle(self, index: int, width: int) -> bytes | None:
        """Bytes of an entry bundle, as far as its rows can be read."""
        return tiles.encode_bundle(self._leaves_of(index, width))

    def _leaves_of(self, index: int, width: int) -> list[bytes]:
        """Leaves of a bundle, up to the first that no row holds; what is wrong is noted once."""
        if self._read == (index, width):
            return self._leaves
        start = index * tiles.TILE_WIDTH
        end = start + width
        leaves: list[bytes] = []
        for first, entries, data in self._rows_of(index):
            at = start + len(leaves)
            if first > at or first >= end:
                break
            if first < at:
                self._wrong(first, "two rows of log_chunk hold it", first + entries)
                continue
            try:
                part = tiles.decode_bundle(data)
            except ValueError as error:
                self._wrong(first, f"its row of log_chunk cannot be read: {error}", first + entries)
                break
            if len(part) != entries:
                what = f"its row of log_chunk says {entries} entries and holds {len(part)}"
                self._wrong(first, what, first + max(entries, len(part)))
            leaves += part
        if len(leaves) < width:
            gap = start + len(leaves)
            after = [first for first, _, _ in self._rows_of(index) if first > gap]
            self._wrong(gap, "no row of log_chunk holds it", min([*after, end]))
        self._read, self._leaves = (index, width), leaves[:width]
        return self._leaves

    def _wrong(self, position: int, what: str, end: int) -> None:
        self.findings.add(Finding(self.log, what, position, end))

    def _rows_of(self, index: int) -> list[tuple[int, int, bytes]]:
        if not self._rows_first <= index < self._rows_end:
            self._rows_first, self._rows_end = index, index + _BUNDLES_AT_ONCE
            rows = self._ask(
                self._db.fetch(
                    "SELECT first_position, entries, leaves FROM log_chunk WHERE log_id = $1"
                    " AND first_position >= $2 AND first_position < $3 ORDER BY first_position",
                    self._log_id,
                    index * tiles.TILE_WIDTH,
                    self._rows_end * tiles.TILE_WIDTH,
                )
            )
            self._rows = {}
            for row in rows:
                self._rows.setdefault(row[0] // tiles.TILE_WIDTH, []).append(tuple(row))
        if index not in self._rows and self._sealed is not None:
            try:
                self._rows[index] = self._ask(self._sealed.rows(self._log_id, index))
            except ArchiveError as error:
                self._rows[index] = []
                start = index * tiles.TILE_WIDTH
                self._wrong(start, str(error), start + tiles.TILE_WIDTH)
        return self._rows.get(index, [])

    # Hashes ---------------------------------------------------------------------

    def tile(self, level: int, index: int, width: int) -> bytes | None:
        """Hashes of a tile; a partial one, which no row holds, out of what is below it."""
        if width == tiles.TILE_WIDTH:
            return self._full(level, index)
        if level == 0:
            return self._edge_tile(index, width)
        first = index * tiles.TILE_WIDTH
        below = [self._full(level - 1, first + at) for at in range(width)]
        return b"".join(
            tiles.tile_root(tile)
            if tile is not None and len(tile) == tiles.TILE_WIDTH * HASH_BYTES
            else bytes(HASH_BYTES)
            for tile in below
        )

    def _full(self, level: int, index: int) -> bytes | None:
        key = (level, index)
        if key not in self._tiles:
            if len(self._tiles) > 4 * _BUNDLES_AT_ONCE:
                self._tiles.clear()
            rows = self._ask(
                self._db.fetch(
                    "SELECT tile_index, hashes FROM log_tile WHERE log_id = $1 AND level = $2"
                    " AND tile_index >= $3 AND tile_index < $4",
                    self._log_id,
                    level,
                    index,
                    index + _BUNDLES_AT_ONCE,
                )
            )
            self._tiles.update({(level, row[0]): row[1] for row in rows})
        own = self._tiles.get(key)
        published = self._ask(self._published_tile(level, index, tiles.TILE_WIDTH))
        if published is not None and own is not None and own != published:
            at = _first_difference(own, published)
            first = index * tiles.TILE_WIDTH + at << 8 * level
            self._wrong(
                first,
                f"its hash in log_tile (level {level}, tile {index}) is not the published one",
                first + (1 << 8 * level),
            )
            return published
        return own

    def _edge_tile(self, index: int, width: int) -> bytes:
        """The hashes at the log's edge: as published, and beyond that as the entries give them.

        Where an entry is missing there is no hash to give.
        """
        own = b"".join(map(leaf_hash, self._leaves_of(index, width)))
        own = own.ljust(width * HASH_BYTES, b"\0")
        if self._published is None:
            return own
        wide = min(self._published.size - index * tiles.TILE_WIDTH, width)
        if wide <= 0:
            return own
        published = self._ask(self._published_tile(0, index, wide))
        if published is None:
            return own
        return published[: wide * HASH_BYTES] + own[wide * HASH_BYTES :]

    async def _published_tile(self, level: int, index: int, width: int) -> bytes | None:
        published = self._published
        if published is None:
            return None
        nodes = published.size >> 8 * level
        wide = min(nodes - index * tiles.TILE_WIDTH, tiles.TILE_WIDTH)
        if wide < width:
            return None
        found = await published.read(tiles.tile_path(level, index, wide))
        if found is None and wide < tiles.TILE_WIDTH:
            found = await published.read(tiles.tile_path(level, index))
        return found


def _first_difference(one: bytes, other: bytes) -> int:
    """Index of the first hash in which two tiles differ."""
    for at in range(0, max(len(one), len(other)), HASH_BYTES):
        if one[at : at + HASH_BYTES] != other[at : at + HASH_BYTES]:
            return at // HASH_BYTES
    raise ValueError("they do not differ")
