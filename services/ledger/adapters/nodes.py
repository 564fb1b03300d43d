"""Tree nodes out of tiles: what proofs are made of.

A proof's need of nodes is a function of its indexes alone, so it is run once
on a reader that only writes down what is asked for; then the tiles are read in
one query, and it is run again. Nodes of a tile that is not full yet are folded
from the leaves, or from the tiles below.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, TypeVar

from kernel.merkle import ReadNode, leaf_hash
from kernel.tiles import TILE_WIDTH, node_in_tile, read_node_from_tile, tile_root
from ledger.adapters.stored import read_leaves

T = TypeVar("T")
_MAX_CACHED: Final = 65_536


class NodeReader:
    """Reads full nodes of logs; they never change, so they are kept."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self._cache: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()

    async def run(self, log_id: int, prove: Callable[[ReadNode], T]) -> T:
        """Run `prove` with a reader of the log's nodes.

        Errors: store.BrokenLogError when a leaf that is needed is not there,
        KeyError when a tile is not.
        """
        needed: list[tuple[int, int]] = []

        def note(level: int, index: int) -> bytes:
            needed.append((level, index))
            return bytes(32)

        prove(note)
        nodes = {address: await self._node(log_id, *address) for address in needed}
        return prove(lambda level, index: nodes[level, index])

    async def _node(self, log_id: int, level: int, index: int) -> bytes:
        key = (log_id, level, index)
        found = self._cache.get(key)
        if found is None:
            found = await self._read(log_id, level, index)
            self._cache[key] = found
            if len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return found

    async def _read(self, log_id: int, level: int, index: int) -> bytes:
        tile_level, tile_index, first, count = node_in_tile(level, index)
        hashes: bytes | None = await self._db.fetchval(
            "SELECT hashes FROM log_tile WHERE log_id = $1 AND level = $2 AND tile_index = $3",
            log_id,
            tile_level,
            tile_index,
        )
        if hashes is not None:
            return read_node_from_tile(hashes, first, count)
        start = tile_index * TILE_WIDTH + first
        if tile_level == 0:
            leaves = await read_leaves(self._db, log_id, start, start + count)
            row = [leaf_hash(leaf) for leaf in leaves]
        else:
            below = await self._db.fetch(
                "SELECT hashes FROM log_tile WHERE log_id = $1 AND level = $2"
                " AND tile_index >= $3 AND tile_index < $4 ORDER BY tile_index",
                log_id,
                tile_level - 1,
                start,
                start + count,
            )
            row = [tile_root(tile["hashes"]) for tile in below]
        return read_node_from_tile(b"".join(row), 0, count)
