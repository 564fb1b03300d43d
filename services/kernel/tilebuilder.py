"""Turns a log's leaves into the files of a C2SP tlog-tiles directory, one pass, bounded memory.

Pure: gives (path, bytes) of each file as soon as it is complete and holds one
tile's hashes a level. Where they are written is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from kernel import tiles
from kernel.merkle import HASH_BYTES, Frontier, leaf_hash

CHECKPOINT_PATH: Final = "checkpoint"
_TILE_BYTES: Final = tiles.TILE_WIDTH * HASH_BYTES


class TileFile(NamedTuple):
    """A file of the log's directory: path below its prefix, and bytes."""

    path: str
    data: bytes


class TileBuilder:
    """One log, from its first leaf to its last."""

    def __init__(self) -> None:
        self._leaves: list[bytes] = []
        self._hashes: list[bytearray] = [bytearray()]
        self._full_tiles: list[int] = [0]
        self._frontier = Frontier()

    @classmethod
    def resume(
        cls, size: int, leaves: Sequence[bytes], read_tile: Callable[[int, int, int], bytes]
    ) -> TileBuilder:
        """Go on where a log of `size` leaves ended.

        `leaves`: those of its partial bundle; `read_tile(level, index, width)`: a
        partial tile's hashes. Errors: ValueError when they are not as long as they
        must be. Whether they are the right ones, the root tells.
        """
        builder = cls()
        builder._leaves = list(leaves)
        if len(leaves) != size % tiles.TILE_WIDTH:
            raise ValueError(f"the edge of {size} leaves is not {len(leaves)} leaves")
        builder._hashes, builder._full_tiles = [], []
        peaks: list[bytes] = []
        level, nodes = 0, size
        while nodes or level == 0:
            index, width = divmod(nodes, tiles.TILE_WIDTH)
            hashes = read_tile(level, index, width) if width else b""
            if len(hashes) != width * HASH_BYTES:
                raise ValueError(f"{tiles.tile_path(level, index, width)} is not whole")
            builder._hashes.append(bytearray(hashes))
            builder._full_tiles.append(index)
            at = width
            for height in range(tiles.TILE_HEIGHT):
                if width >> height & 1:
                    at -= 1 << height
                    peaks.append(tiles.read_node_from_tile(hashes, at, 1 << height))
            level, nodes = level + 1, index
        builder._frontier = Frontier.from_bytes(size, b"".join(peaks))
        return builder

    @property
    def size(self) -> int:
        """Number of leaves so far."""
        return self._frontier.size

    def root(self) -> bytes:
        """Root of the tree so far (32 bytes)."""
        return self._frontier.root()

    def append(self, leaf: bytes) -> list[TileFile]:
        """Add a leaf; gives the files it completes. Errors: ValueError over 65,535 bytes."""
        if len(leaf) > tiles.MAX_ENTRY_BYTES:
            raise ValueError(
                f"an entry has at most {tiles.MAX_ENTRY_BYTES} bytes, this one has {len(leaf)}"
            )
        self._leaves.append(leaf)
        hashed = leaf_hash(leaf)
        self._frontier.append(hashed)
        self._hashes[0] += hashed
        if len(self._leaves) < tiles.TILE_WIDTH:
            return []
        bundle = TileFile(tiles.bundle_path(self._full_tiles[0]), tiles.encode_bundle(self._leaves))
        self._leaves.clear()
        return [bundle, *self._fill(0)]

    def partial(self) -> Iterator[TileFile]:
        """The partial tiles and bundle at the log's edge as it is now."""
        if self._leaves:
            yield TileFile(
                tiles.bundle_path(self._full_tiles[0], len(self._leaves)),
                tiles.encode_bundle(self._leaves),
            )
        for level, hashes in enumerate(self._hashes):
            if hashes:
                width = len(hashes) // HASH_BYTES
                yield TileFile(
                    tiles.tile_path(level, self._full_tiles[level], width), bytes(hashes)
                )

    def _fill(self, level: int) -> Iterator[TileFile]:
        """Complete a level's tile and hash it up to the next level."""
        data = bytes(self._hashes[level])
        yield TileFile(tiles.tile_path(level, self._full_tiles[level]), data)
        self._full_tiles[level] += 1
        self._hashes[level].clear()
        if level + 1 == len(self._hashes):
            self._hashes.append(bytearray())
            self._full_tiles.append(0)
        self._hashes[level + 1] += tiles.tile_root(data)
        if len(self._hashes[level + 1]) == _TILE_BYTES:
            yield from self._fill(level + 1)
