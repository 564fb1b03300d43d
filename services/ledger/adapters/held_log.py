"""One usage log as its owner holds it: the port of partition.py, by store.py's SQL and, for leaves
of long ago, the archive.

Owns nothing but a pool and the head that the take-over gave; each call takes a
connection and gives it back.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from ledger.adapters import store, stored
from ledger.adapters.leaves import LeafReader
from ledger.adapters.store import Head
from ledger.domain.batch import Batch, LogState
from ledger.domain.streams import StreamState


class HeldLog:
    """A log for one epoch. Errors of every call: those of database.AWAY."""

    def __init__(self, pool: Any, head: Head, lease_ms: int, leaves: LeafReader) -> None:
        self.head = head
        self._leaves = leaves
        self._pool = pool
        self._lease_ms = lease_ms
        self._opened_to = head.opened_to

    async def last_leaf(self) -> bytes | None:
        """The leaf that the log ends with. Errors: BrokenLogError."""
        head = self.head
        if not head.size:
            return None
        [data] = await stored.read_leaves(self._pool, head.log_id, head.size - 1, head.size)
        return data

    async def bind_topic(self, topic_id: bytes) -> None:
        """Note the topic that the log is fed from. Errors: FencedError."""
        await store.bind_topic(self._pool, self.head, topic_id)

    async def load(self) -> LogState:
        """The log's state at its head, and leave to go on. Errors: BrokenLogError."""
        head = self.head
        async with self._pool.acquire() as db:
            tree = await stored.load_tree(db, head)
            read = functools.partial(self._leaves.leaves, head.log_id)
            state = LogState(tree, head.next_offset, await stored.load_index(db, head, read))
            await store.resume(db, head)
        return state

    async def leaves_at(self, positions: Iterable[int]) -> dict[int, bytes]:
        """Leaf bytes at single positions. Errors: BrokenLogError."""
        return await self._leaves.at(self.head.log_id, positions)

    async def load_streams(self, stream_ids: Iterable[str]) -> dict[str, StreamState]:
        """State of the producer streams that the log knows."""
        async with self._pool.acquire() as db:
            return await stored.load_streams(db, self.head.log_id, stream_ids)

    async def write(self, batch: Batch) -> int:
        """Commit a batch; gives its pin. Errors: FencedError."""
        async with self._pool.acquire() as db:
            if batch.size > self._opened_to:
                self._opened_to = await store.open_segments(db, self.head.log_id, batch.size)
            pin = await store.write_usage(db, self.head, batch, self._lease_ms)
            if batch.sealed is not None:
                await store.save_run(db, self.head.log_id, batch.sealed)
        return pin
