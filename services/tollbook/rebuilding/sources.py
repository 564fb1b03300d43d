"""Where a lost log's entries come from: published tiles, or the Kafka partition it was made of.

A source gives (leaf bytes, the record that stands aside or nothing) from position
0 on, in order. Both give the same bytes, because a leaf is a pure function of its
record and of the log before it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from kernel import leaf as leaf_format
from kernel import tiles
from kernel.errors import FailedPrecondition, Unavailable
from kernel.placement import partition_of_log
from ledger.adapters.tile_store import TileStore, aside_path, log_prefix
from ledger.domain.admission import Admission

_POLL_MS: Final = 1_000
_MAX_EMPTY_POLLS: Final = 10
_MAX_RECORDS: Final = 5_000


class Entry(NamedTuple):
    """An entry: leaf bytes, and the record where the leaf has but its digest."""

    leaf: bytes
    aside: bytes


class Source(Protocol):
    """Gives a log's entries."""

    def entries(self, size: int) -> AsyncGenerator[Entry, None]:
        """The first `size` entries. Errors: FailedPrecondition when they are not all there."""


class TilesSource:
    """Published tiles, or an export."""

    def __init__(self, store: TileStore, log: str) -> None:
        self._store = store
        self._log = log

    async def entries(self, size: int) -> AsyncGenerator[Entry, None]:
        """The first `size` entries."""
        for index, width in tiles.bundles_of(size):
            for leaf in await self._bundle(index, width):
                read = leaf_format.decode(leaf)
                aside = b""
                if read.aside:
                    digest, _ = leaf_format.aside_of(read.value)
                    found = await self._store.get(aside_path(digest))
                    if found is None:
                        raise FailedPrecondition(
                            f"{aside_path(digest)}, a record of {self._log}, is not there",
                            reason="SOURCE_NOT_WHOLE",
                        )
                    aside = found
                yield Entry(leaf, aside)

    async def _bundle(self, index: int, width: int) -> list[bytes]:
        prefix = log_prefix(self._log)
        data = await self._store.get(prefix + tiles.bundle_path(index, width))
        if data is None and width < tiles.TILE_WIDTH:
            data = await self._store.get(prefix + tiles.bundle_path(index))
        try:
            leaves = tiles.decode_bundle(data or b"")[:width]
        except ValueError:
            leaves = []
        if len(leaves) < width:
            raise FailedPrecondition(
                f"{prefix}{tiles.bundle_path(index, width)} is not whole", reason="SOURCE_NOT_WHOLE"
            )
        return leaves


class KafkaSource:
    """The partition that a usage log was made of, as far back as it reaches."""

    def __init__(self, kafka: str, topic: str, log: str) -> None:
        self._kafka = kafka
        self._log = log
        self._part = TopicPartition(topic, partition_of_log(log) or 0)

    async def entries(self, size: int) -> AsyncGenerator[Entry, None]:
        """The first `size` entries, admitted anew."""
        admission = Admission()
        given = 0
        async with aclosing(self._records(size)) as records:
            async for record in records:
                value = record.value or b""
                verdict = admission.admit(record.key, record.value)
                leaf = leaf_format.encode(
                    *verdict, record.offset, record.timestamp, record.key or b"", value
                )
                yield Entry(leaf, value if leaf_format.decode(leaf).aside else b"")
                given += 1
                if given == size:
                    return

    async def _records(self, size: int) -> AsyncGenerator[Any, None]:
        if not size:
            return
        consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=self._kafka.split(","),
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=8 * 1024 * 1024,
        )
        try:
            await consumer.start()
            consumer.assign([self._part])
            first = (await consumer.beginning_offsets([self._part]))[self._part]
            end = (await consumer.end_offsets([self._part]))[self._part]
            if first:
                raise FailedPrecondition(
                    f"Kafka has forgotten the records of {self._log} before offset {first}:"
                    " rebuild it from its tiles",
                    reason="RECORDS_FORGOTTEN",
                )
            consumer.seek(self._part, first)
            empty = 0
            while await consumer.position(self._part) < end and empty < _MAX_EMPTY_POLLS:
                got = await consumer.getmany(
                    self._part, timeout_ms=_POLL_MS, max_records=_MAX_RECORDS
                )
                empty = 0 if got else empty + 1
                for record in got.get(self._part, ()):
                    yield record
        except KafkaError as error:
            raise Unavailable(f"the broker does not give {self._part}: {error!r}") from None
        finally:
            await consumer.stop()
