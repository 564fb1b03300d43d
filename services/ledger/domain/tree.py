"""A growing Merkle tree in the shape of C2SP tiles.

Owns the right edge of a log's tree as the partial tile of each level, and
gives each tile when it is full. The root and the frontier are the kernel's
(RFC 6962); only the way to them is by tiles, because a full tile is folded in
a few list comprehensions and never touched again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kernel.merkle import EMPTY_ROOT, Frontier, node_hash
from kernel.tiles import TILE_WIDTH, tile_root


class Tile(NamedTuple):
    """A full tile: 256 hashes of 32 bytes."""

    level: int
    tile_index: int
    hashes: bytes


def _peaks(hashes: Sequence[bytes]) -> list[bytes]:
    """Fold the hashes of a partial tile into its peaks, leftmost (largest) first."""
    peaks: list[bytes] = []
    at = 0
    for height in range(len(hashes).bit_length() - 1, -1, -1):
        if not len(hashes) >> height & 1:
            continue
        row = list(hashes[at : at + (1 << height)])
        at += 1 << height
        while len(row) > 1:
            row = [node_hash(row[even], row[even + 1]) for even in range(0, len(row), 2)]
        peaks.append(row[0])
    return peaks


class TreeBuilder:
    """The right edge of a log's tree: for each tile level the hashes of its partial tile."""

    __slots__ = ("_low", "_partial", "_upper_peaks", "size")

    def __init__(self, size: int = 0, partial: Sequence[Sequence[bytes]] = ()) -> None:
        """Restore an edge: `partial[level]` holds size / 256**level mod 256 hashes."""
        self.size = size
        self._partial = [list(hashes) for hashes in partial] or [[]]
        # Peaks of the levels above 0, lowest level last; they change once in 256 leaves.
        self._upper_peaks: list[bytes] | None = None
        # The partial tile of level 0 as far as it was folded: a small batch folds only its own.
        self._low = Frontier()
        rest = size
        for level, hashes in enumerate(self._partial):
            if len(hashes) != rest % TILE_WIDTH:
                raise ValueError(
                    f"level {level} of a tree of {size} leaves has {rest % TILE_WIDTH} hashes"
                    f" at its edge, not {len(hashes)}"
                )
            rest //= TILE_WIDTH
        if rest:
            raise ValueError(f"a tree of {size} leaves has more than {len(self._partial)} levels")

    def edge(self) -> list[bytes]:
        """The leaf hashes of the tile that is not full yet."""
        return list(self._partial[0])

    def extend(self, leaf_hashes: Sequence[bytes]) -> list[Tile]:
        """Add leaf hashes in order and give the tiles that became full."""
        row = [*self._partial[0], *leaf_hashes]
        whole = len(row) // TILE_WIDTH * TILE_WIDTH
        tiles = [b"".join(row[at : at + TILE_WIDTH]) for at in range(0, whole, TILE_WIDTH)]
        return self.extend_by_tiles(tiles, [tile_root(tile) for tile in tiles], row[whole:])

    def extend_by_tiles(
        self, tiles: Sequence[bytes], roots: Sequence[bytes], rest: list[bytes]
    ) -> list[Tile]:
        """Add leaf hashes that are folded already: full tiles with their roots, and what follows.

        The first tile begins with `edge()`. Gives the tiles of all levels that became full.
        """
        first = self.size // TILE_WIDTH
        self.size = (first + len(tiles)) * TILE_WIDTH + len(rest)
        full = [Tile(0, first + number, hashes) for number, hashes in enumerate(tiles)]
        self._partial[0] = rest
        if tiles:
            self._low = Frontier()
        level, up = 0, list(roots)
        while up:
            level += 1
            first //= TILE_WIDTH
            if level == len(self._partial):
                self._partial.append([])
            row = self._partial[level]
            row.extend(up)
            self._upper_peaks = None
            up = []
            whole = len(row) // TILE_WIDTH
            for number in range(whole):
                hashes = b"".join(row[number * TILE_WIDTH : (number + 1) * TILE_WIDTH])
                full.append(Tile(level, first + number, hashes))
                up.append(tile_root(hashes))
            del row[: whole * TILE_WIDTH]
        return full

    def peaks(self) -> list[bytes]:
        """The tree's peaks, leftmost (largest) first."""
        if self._upper_peaks is None:
            self._upper_peaks = [
                peak for hashes in reversed(self._partial[1:]) for peak in _peaks(hashes)
            ]
        self._low.extend(self._partial[0][self._low.size :])
        return self._upper_peaks + self._low.peaks()[::-1]

    def root_and_frontier(self) -> tuple[bytes, bytes]:
        """RFC 6962 root, and the peaks as kernel.merkle.Frontier writes them: lowest first."""
        peaks = self.peaks()
        return fold_peaks(peaks), b"".join(reversed(peaks))

    def root(self) -> bytes:
        """RFC 6962 root (32 bytes)."""
        return fold_peaks(self.peaks())

    def frontier(self) -> bytes:
        """The peaks as kernel.merkle.Frontier writes them: lowest level first."""
        return b"".join(reversed(self.peaks()))


def fold_peaks(peaks: Sequence[bytes]) -> bytes:
    """Root over peaks, leftmost first."""
    root: bytes | None = None
    for peak in reversed(peaks):
        root = peak if root is None else node_hash(peak, root)
    return EMPTY_ROOT if root is None else root
