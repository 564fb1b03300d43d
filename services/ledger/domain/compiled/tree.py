"""Growing a log's tree by a row of leaf hashes: whole tiles are folded side by side."""

from __future__ import annotations

import numpy as np

from kernel.merkle import HASH_BYTES
from kernel.sha256 import Bytes, hash_pairs
from kernel.tiles import TILE_HEIGHT, TILE_WIDTH
from ledger.domain.tree import Tile, TreeBuilder


def extend(tree: TreeBuilder, hashes: Bytes) -> list[Tile]:
    """What `tree.extend` does, for hashes in an array of (n, 32) bytes."""
    begun = tree.edge()
    if len(begun) + len(hashes) < TILE_WIDTH:
        return tree.extend([row.tobytes() for row in hashes])
    edge = np.frombuffer(b"".join(begun), dtype=np.uint8).reshape(-1, HASH_BYTES)
    row = np.concatenate([edge, hashes])
    whole = len(row) // TILE_WIDTH * TILE_WIDTH
    nodes = row[:whole]
    for _ in range(TILE_HEIGHT):
        nodes = hash_pairs(nodes)
    return tree.extend_by_tiles(
        tiles=[row[at : at + TILE_WIDTH].tobytes() for at in range(0, whole, TILE_WIDTH)],
        roots=[root.tobytes() for root in nodes],
        rest=[left.tobytes() for left in row[whole:]],
    )
