"""A log under way to its checkpoint, and the batches by which its entries are written."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from audit.cuts import Pin
from kernel import leaf as leaf_format
from kernel.merkle import leaf_hash
from kernel.note import Checkpoint
from kernel.placement import partition_of_log
from ledger.adapters.store import Head
from ledger.domain.appending import NewKey
from ledger.domain.batch import Batch, Exceptional, chunks_of, stream_rows
from ledger.domain.tree import TreeBuilder
from tollbook.rebuilding.published import FOREVER
from tollbook.rebuilding.sources import Entry, Source
from tollbook.rebuilding.survey import Survey

_BATCH_ENTRIES: Final = 4_096
_BATCH_BYTES: Final = 8 * 1024 * 1024


@dataclass
class Log:
    """A log that the database lacks entries of."""

    name: str
    checkpoint: Checkpoint
    note: bytes
    head: Head
    tree: TreeBuilder
    source: Source
    pins: Sequence[Pin]
    survey: Survey
    next_offset: int
    stream: AsyncGenerator[Entry, None] | None = None
    opened_to: int = 0

    @property
    def position(self) -> int:
        """Next position to be written."""
        return self.tree.size

    def stretches(self) -> list[tuple[int, int, int]]:
        """(control size, start, end) of what is to be written, pin by pin."""
        size = self.checkpoint.size
        pins = list(self.pins) or [(0, FOREVER)]
        ends = [pin[0] for pin in pins[1:]] + [size]
        return [
            (control_size, max(start, self.head.size), min(end, size))
            for (start, control_size), end in zip(pins, ends, strict=True)
            if min(end, size) > max(start, self.head.size)
        ]

    async def next_entries(self, end: int) -> list[Entry]:
        """Entries for the next batch, none at `end` or beyond."""
        if self.stream is None:
            self.stream = _from(self.source, self.checkpoint.size, self.head.size)
        entries: list[Entry] = []
        size = 0
        while self.position + len(entries) < end and len(entries) < _BATCH_ENTRIES:
            entry = await anext(self.stream)
            entries.append(entry)
            size += len(entry.leaf) + len(entry.aside)
            if size > _BATCH_BYTES:
                break
        return entries


async def _from(source: Source, size: int, start: int) -> AsyncGenerator[Entry, None]:
    position = 0
    async with aclosing(source.entries(size)) as entries:
        async for entry in entries:
            if position >= start:
                yield entry
            position += 1


def batch_of(log: Log, entries: list[Entry]) -> tuple[Batch, list[NewKey]]:
    """The batch that these entries make, and, of an Append log, their idempotency keys."""
    is_usage = partition_of_log(log.name) is not None
    first = log.tree.size
    counts = [0, 0, 0, 0]
    asides: list[tuple[int, bytes]] = []
    exceptions: list[Exceptional] = []
    keys: list[NewKey] = []
    next_offset = log.next_offset
    for position, entry in enumerate(entries, first):
        leaf = leaf_format.decode(entry.leaf)
        counts[leaf.disposition - 1] += 1
        if leaf.aside:
            asides.append((position, entry.aside))
        if is_usage:
            next_offset = leaf.offset + 1
            if leaf.disposition > 2:
                exceptions.append(Exceptional(position, leaf.disposition, leaf.reason))
        else:
            next_offset = position + 1
            digest = hashlib.sha256(entry.aside if leaf.aside else leaf.value).digest()
            keys.append(NewKey(leaf.key.decode(), position, digest))
    data = [entry.leaf for entry in entries]
    made = log.tree.extend([leaf_hash(leaf) for leaf in data])
    root, frontier = log.tree.root_and_frontier()
    is_last = log.tree.size == log.checkpoint.size
    return (
        Batch(
            first_position=first,
            first_offset=log.next_offset,
            size=log.tree.size,
            next_offset=next_offset,
            root=root,
            frontier=frontier,
            chunks=chunks_of(first, data),
            tiles=made,
            counts=(counts[0], counts[1], counts[2], counts[3]),
            asides=asides,
            exceptions=exceptions,
            streams=stream_rows(log.survey.streams) if is_last and is_usage else [],
        ),
        keys,
    )
