"""C2SP tlog-tiles: names, widths and bytes of tiles and entry bundles.

A tile at tile level T and index N holds the 256 (or, at the log's edge,
fewer) nodes of tree level 8*T from index 256*N on; the entry bundle N holds
the leaves 256*N .. 256*N+255, each as a u16 big-endian length and its bytes.

Source: c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from kernel.merkle import HASH_BYTES, node_hash

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 256
MAX_ENTRY_BYTES: Final = 65_535


def _index_path(index: int) -> str:
    """Write an index in groups of three digits: 1234067 is x001/x234/067."""
    groups = [f"{index % 1000:03d}"]
    index //= 1000
    while index:
        groups.append(f"x{index % 1000:03d}")
        index //= 1000
    return "/".join(reversed(groups))


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """Path of a tile below the log's prefix; `width` < 256 names a partial one."""
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{level}/{_index_path(index)}{partial}"


def bundle_path(index: int, width: int = TILE_WIDTH) -> str:
    """Path of an entry bundle below the log's prefix."""
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/entries/{_index_path(index)}{partial}"


def tiles_of(size: int) -> Iterator[tuple[int, int, int]]:
    """All (level, index, width) of a log of `size` leaves, lowest level first."""
    level = 0
    nodes = size
    while nodes:
        for index in range(nodes // TILE_WIDTH):
            yield level, index, TILE_WIDTH
        if nodes % TILE_WIDTH:
            yield level, nodes // TILE_WIDTH, nodes % TILE_WIDTH
        nodes //= TILE_WIDTH
        level += 1


def bundles_of(size: int) -> Iterator[tuple[int, int]]:
    """All (index, width) of entry bundles of a log of `size` leaves."""
    for index in range(size // TILE_WIDTH):
        yield index, TILE_WIDTH
    if size % TILE_WIDTH:
        yield size // TILE_WIDTH, size % TILE_WIDTH


def tile_root(hashes: bytes) -> bytes:
    """Fold a full tile of 256 hashes into the one node 8 levels above it."""
    if len(hashes) != TILE_WIDTH * HASH_BYTES:
        raise ValueError(
            f"only a full tile has a root; this one has {len(hashes) // HASH_BYTES} hashes"
        )
    row = [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
    sha256 = hashlib.sha256
    while len(row) > 1:
        row = [sha256(b"\x01" + row[at] + row[at + 1]).digest() for at in range(0, len(row), 2)]
    return row[0]


def node_in_tile(level: int, index: int) -> tuple[int, int, int, int]:
    """Find tree node (level, index): (tile level, tile index, first hash, hashes to fold)."""
    tile_level, height = divmod(level, TILE_HEIGHT)
    first = index << height
    return tile_level, first // TILE_WIDTH, first % TILE_WIDTH, 1 << height


def read_node_from_tile(hashes: bytes, first: int, count: int) -> bytes:
    """Fold `count` (a power of two) hashes of a tile from `first` on into one node.

    Errors: KeyError when the tile is too short to hold them.
    """
    if (first + count) * HASH_BYTES > len(hashes):
        raise KeyError(
            f"the tile holds {len(hashes) // HASH_BYTES} hashes, {first + count} are needed"
        )
    row = [hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES] for at in range(first, first + count)]
    while len(row) > 1:
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)]
    return row[0]


def encode_bundle(leaves: Sequence[bytes]) -> bytes:
    """Entry bundle of up to 256 leaves. Errors: ValueError for a leaf over 65,535 bytes."""
    parts: list[bytes] = []
    for leaf in leaves:
        if len(leaf) > MAX_ENTRY_BYTES:
            raise ValueError(
                f"an entry has at most {MAX_ENTRY_BYTES} bytes, this one has {len(leaf)}"
            )
        parts.append(len(leaf).to_bytes(2, "big"))
        parts.append(leaf)
    return b"".join(parts)


def decode_bundle(data: bytes) -> list[bytes]:
    """Leaves of an entry bundle. Errors: ValueError when lengths and bytes do not fit."""
    leaves: list[bytes] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        end = at + 2 + length
        if at + 2 > len(data) or end > len(data):
            raise ValueError(f"entry {len(leaves)} of the bundle is cut off")
        leaves.append(data[at + 2 : end])
        at = end
    return leaves
