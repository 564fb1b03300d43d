"""One log's tree, recomputed from its entries and held against its tiles and signed root.

Streams: holds one bundle and, for each level, one tile's hashes. Where an entry
and a tile disagree, the tiles above decide which of them is the altered one:
up to the signed root they are bound by hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

from audit.findings import Finding, Findings
from audit.layout import split_bundle
from kernel import tiles
from kernel.merkle import HASH_BYTES, Frontier, leaf_hash, root_at
from kernel.note import Checkpoint

_MAX_MISMATCHES: Final = 1_000


class TileFiles(Protocol):
    """The tiles and bundles of one log; None for what is not there."""

    log: str

    def tile(self, level: int, index: int, width: int) -> bytes | None:
        """Hashes of a tile."""

    def bundle(self, index: int, width: int) -> bytes | None:
        """Bytes of an entry bundle."""


@dataclass(frozen=True, slots=True)
class _Mismatch:
    """A tile that is not what the entries below it give; hash `offset` is the first such."""

    level: int
    index: int
    width: int
    offset: int
    computed: bytes

    @property
    def first_position(self) -> int:
        """First position below the hash that differs."""
        return self.index * tiles.TILE_WIDTH + self.offset << 8 * self.level

    @property
    def end_position(self) -> int:
        """Position after the last below it."""
        return self.first_position + (1 << 8 * self.level)

    @property
    def file(self) -> str:
        """The tile's path."""
        return tiles.tile_path(self.level, self.index, self.width)


def _first_difference(one: bytes, other: bytes) -> int:
    """Index of the first hash that differs between two tiles that do."""
    for at in range(0, max(len(one), len(other)), HASH_BYTES):
        if one[at : at + HASH_BYTES] != other[at : at + HASH_BYTES]:
            return at // HASH_BYTES
    raise ValueError("they do not differ")


class TreeCheck:
    """The check of one log. Read `bundles` to the end, then `finish`."""

    def __init__(
        self, files: TileFiles, checkpoint: Checkpoint, wanted_sizes: Iterable[int] = ()
    ) -> None:
        """`wanted_sizes`: sizes at which the tree's root is wanted, for the cuts."""
        self._files = files
        self._signed = checkpoint
        self._size = checkpoint.size
        self._frontier = Frontier()
        self._wanted = sorted({size for size in wanted_sizes if 0 <= size <= self._size})
        self._levels: list[bytearray] = [bytearray()]
        self._tiles_done: list[int] = [0]
        self._mismatches: list[_Mismatch] = []
        self._findings = Findings()
        self._authentic: dict[tuple[int, int], bool] = {}
        self.roots: dict[int, bytes] = {}
        """Root of the tree over the entries at each wanted size."""
        self.readable = self._size
        """Entries can be read at positions below this."""

    @property
    def root(self) -> bytes:
        """Root over the entries as they stand (32 bytes), once all are read."""
        return self._frontier.root()

    def bundles(self) -> Iterator[tuple[int, list[bytes]]]:
        """Check and give (first position, entries) of each bundle, up to the first unreadable."""
        self._note_roots([])
        for index, width in tiles.bundles_of(self._size):
            first = index * tiles.TILE_WIDTH
            stored = self._files.tile(0, index, width)
            if stored is None:
                self._findings.add(self._missing(tiles.tile_path(0, index, width), first, width))
            entries, hashes = self._read_bundle(index, width, stored)
            self._note_roots(hashes)
            self._take(b"".join(hashes), index, width, stored)
            if first < self.readable:
                yield first, entries
        for level in range(1, len(self._levels)):
            width = len(self._levels[level]) // HASH_BYTES
            if width:
                self._compare(level, self._tiles_done[level], width, bytes(self._levels[level]))

    def _missing(self, path: str, first: int, width: int) -> Finding:
        return Finding(
            f"{self._files.log} {path}",
            f"there is no such file (positions {first} to {first + width - 1})",
        )

    def _read_bundle(
        self, index: int, width: int, stored: bytes | None
    ) -> tuple[list[bytes], list[bytes]]:
        """Entries, and `width` hashes: where an entry is unreadable the tile's stands for it."""
        log, first = self._files.log, index * tiles.TILE_WIDTH
        path = tiles.bundle_path(index, width)
        data = self._files.bundle(index, width)
        if data is None:
            self._findings.add(self._missing(path, first, width))
            data = b""
            whole = True
            entries: list[bytes] = []
        else:
            entries, whole = split_bundle(data, width)
        hashes = [leaf_hash(entry) for entry in entries]
        if len(entries) < width:
            broken = first + len(entries)
            # A changed length shifts all that follows: what differs first is the entry whose
            # length it was, and the tile knows it.
            if data:
                differs = next(
                    (
                        at
                        for at, hashed in enumerate(hashes)
                        if stored is not None
                        and hashed != stored[at * HASH_BYTES : (at + 1) * HASH_BYTES]
                    ),
                    len(entries),
                )
                self._findings.add(
                    Finding(
                        log,
                        f"{path} cannot be read as {width} entries from here on",
                        first + differs,
                    )
                )
                broken = first + differs
                del entries[differs:], hashes[differs:]
            self.readable = min(self.readable, broken)
            rest = (stored or b"")[len(hashes) * HASH_BYTES : width * HASH_BYTES]
            rest = rest.ljust((width - len(hashes)) * HASH_BYTES, b"\0")
            hashes += [rest[at : at + HASH_BYTES] for at in range(0, len(rest), HASH_BYTES)]
        elif not whole and stored == b"".join(hashes):
            self._findings.add(
                Finding(f"{log} {path}", f"there are more bytes than {width} entries have")
            )
        return entries, hashes

    def _note_roots(self, hashes: list[bytes]) -> None:
        """Add hashes to the frontier; stop at each wanted size for the root there."""
        at = 0
        base = self._frontier.size
        while self._wanted and self._wanted[0] <= base + len(hashes):
            size = self._wanted.pop(0)
            self._frontier.extend(hashes[at : size - base])
            at = size - base
            self.roots[size] = self._frontier.root()
        self._frontier.extend(hashes[at:] if at else hashes)

    def _take(self, data: bytes, index: int, width: int, stored: bytes | None) -> None:
        """Compare a level-0 tile and hash a full one up."""
        if stored is not None and stored != data:
            self._differ(0, index, width, data, stored)
        level = 0
        while len(data) == tiles.TILE_WIDTH * HASH_BYTES:
            level += 1
            if level == len(self._levels):
                self._levels.append(bytearray())
                self._tiles_done.append(0)
            self._levels[level] += tiles.tile_root(data)
            data = bytes(self._levels[level])
            if len(data) == tiles.TILE_WIDTH * HASH_BYTES:
                self._compare(level, self._tiles_done[level], tiles.TILE_WIDTH, data)
                self._tiles_done[level] += 1
                self._levels[level].clear()

    def _compare(self, level: int, index: int, width: int, computed: bytes) -> None:
        stored = self._files.tile(level, index, width)
        if stored is None:
            path = tiles.tile_path(level, index, width)
            self._findings.add(Finding(f"{self._files.log} {path}", "there is no such file"))
        elif stored != computed:
            self._differ(level, index, width, computed, stored)

    def _differ(self, level: int, index: int, width: int, computed: bytes, stored: bytes) -> None:
        if len(self._mismatches) < _MAX_MISMATCHES:
            offset = _first_difference(stored, computed)
            self._mismatches.append(_Mismatch(level, index, width, offset, computed))

    # Which one is altered --------------------------------------------------

    @cached_property
    def _edge_is_signed(self) -> bool:
        """Whether the tiles at the log's edge give the signed root."""

        def read(level: int, index: int) -> bytes:
            tile_level, tile, first, count = tiles.node_in_tile(level, index)
            data = self._stored(tile_level, tile)
            return tiles.read_node_from_tile(data, first, count)

        try:
            return root_at(self._size, read) == self._signed.root
        except KeyError:
            return False

    def _width(self, level: int, index: int) -> int:
        nodes = self._size >> 8 * level
        return min(tiles.TILE_WIDTH, nodes - index * tiles.TILE_WIDTH)

    def _stored(self, level: int, index: int) -> bytes:
        return self._files.tile(level, index, self._width(level, index)) or b""

    def _is_authentic(self, level: int, index: int) -> bool:
        """Whether a stored tile is bound to the signed root by the stored tiles above it."""
        known = self._authentic.get((level, index))
        if known is None:
            known = self._authentic[level, index] = self._find_authentic(level, index)
        return known

    def _find_authentic(self, level: int, index: int) -> bool:
        width = self._width(level, index)
        data = self._stored(level, index)
        if len(data) != width * HASH_BYTES:
            return False
        if width < tiles.TILE_WIDTH:
            return self._edge_is_signed
        return self._is_below(level, index, data)

    def _is_below(self, level: int, index: int, data: bytes) -> bool:
        """Whether a full tile's bytes are what its (authentic) parent says."""
        parent, at = divmod(index, tiles.TILE_WIDTH)
        above = self._stored(level + 1, parent)[at * HASH_BYTES : (at + 1) * HASH_BYTES]
        return above == tiles.tile_root(data) and self._is_authentic(level + 1, parent)

    def finish(self) -> Findings:
        """Every difference, the lowest position of a level first, entries before tiles."""
        signed = self.root == self._signed.root
        blamed: list[tuple[int, int]] = []
        for found in self._mismatches:
            if self._is_authentic(found.level, found.index):
                inside = any(
                    found.first_position <= first < found.end_position for first, _ in blamed
                )
                if not inside:
                    blamed.append((found.first_position, found.end_position))
                    self._findings.add(self._altered_below(found))
            elif signed or (
                found.width == tiles.TILE_WIDTH
                and self._is_below(found.level, found.index, found.computed)
            ):
                self._findings.add(
                    Finding(
                        f"{self._files.log} {found.file}",
                        f"hash {found.offset} is altered: it is not that of"
                        f" {_span(found)}, which the signed root has",
                    )
                )
            else:
                blamed.append((found.first_position, found.end_position))
                self._findings.add(
                    Finding(
                        self._files.log,
                        f"the entry and {found.file} differ, and the tiles above agree with"
                        " neither",
                        found.first_position,
                        found.end_position,
                    )
                )
        if not signed and not blamed and not len(self._findings):
            self._findings.add(
                Finding(
                    self._files.log,
                    f"entries and tiles agree with each other and give the root"
                    f" {self.root.hex()}; the checkpoint signs {self._signed.root.hex()}",
                    0,
                    self._size,
                )
            )
        return self._findings

    def _altered_below(self, found: _Mismatch) -> Finding:
        if found.level == 0:
            what = "the entry is altered: its hash is not the one that the signed root has"
        else:
            what = f"entries are altered, with the tiles below {found.file}: that has another hash"
        return Finding(self._files.log, what, found.first_position, found.end_position)


def _span(found: _Mismatch) -> str:
    if found.level == 0:
        return f"position {found.first_position}"
    return f"positions {found.first_position} to {found.end_position - 1}"
