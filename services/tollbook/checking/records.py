"""Holds a usage log's entries against the records that its Kafka partition still has.

An entry is a pure function of its record, so each is compared byte by byte:
an entry whose record is not there was put in by hand, a record without an
entry was taken out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from audit.findings import Finding, Findings
from kernel import leaf as leaf_format
from kernel.errors import Unavailable
from kernel.leaf import Leaf
from kernel.placement import partition_of_log

T = TypeVar("T")

_WAIT_S: Final = 60.0
_POLL_MS: Final = 1_000
_MAX_RECORDS: Final = 10_000
_MAX_EMPTY_POLLS: Final = 10


class RecordCheck:
    """One partition, read beside its log. Show it every entry in order, then `finish`."""

    def __init__(self, kafka: str, topic: str, log: str, loop: asyncio.AbstractEventLoop) -> None:
        self.findings = Findings()
        self.notes: list[str] = []
        self._log = log
        self._loop = loop
        self._part = TopicPartition(topic, partition_of_log(log) or 0)
        self._consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=kafka.split(","),
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=8 * 1024 * 1024,
        )
        self._records: list[Any] = []
        self._at = 0
        self._first = 0
        self._end = 0
        self._position = 0
        self._last_offset = -1

    async def start(self, next_offset: int) -> None:
        """Begin at the partition's first record. Errors: Unavailable."""
        try:
            await self._consumer.start()
            self._consumer.assign([self._part])
            self._first = (await self._consumer.beginning_offsets([self._part]))[self._part]
            end = (await self._consumer.end_offsets([self._part]))[self._part]
            self._end = min(end, next_offset)
            self._consumer.seek(self._part, self._first)
        except KafkaError as error:
            raise Unavailable(f"the broker does not give {self._part}: {error!r}") from None
        if self._first:
            self.notes.append(
                f"{self._log}: Kafka has forgotten the records before offset {self._first};"
                " entries of those were not compared"
            )

    async def stop(self) -> None:
        """End."""
        await self._consumer.stop()

    def _ask(self, what: Awaitable[T]) -> T:
        async def asked() -> T:
            return await what

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result(_WAIT_S)

    def _next(self) -> Any | None:
        """The next record below the end; None when there is none. Called from the thread."""
        empty = 0
        while self._at >= len(self._records):
            if self._ask(self._consumer.position(self._part)) >= self._end:
                return None
            got = self._ask(
                self._consumer.getmany(self._part, timeout_ms=_POLL_MS, max_records=_MAX_RECORDS)
            )
            self._records, self._at = got.get(self._part, []), 0
            empty = 0 if self._records else empty + 1
            if empty > _MAX_EMPTY_POLLS:
                raise Unavailable(f"the broker gives no more of {self._part}")
        record = self._records[self._at]
        return record if record.offset < self._end else None

    def look(self, position: int, leaf: Leaf, data: bytes) -> None:
        """Compare the next entry with its record."""
        self._position = position + 1
        if leaf.offset < self._first:
            return
        record = self._next()
        while record is not None and record.offset < leaf.offset:
            self._lacks(position, record)
            record = self._next()
        if record is None or record.offset > leaf.offset:
            if leaf.offset != self._last_offset:
                what = f"Kafka has no record at its offset {leaf.offset}: put in by hand"
            else:
                what = f"its offset {leaf.offset} is that of the entry before: put in by hand"
            self.findings.add(Finding(self._log, what, position))
            return
        self._at += 1
        self._last_offset = leaf.offset
        expected = leaf_format.encode(
            leaf.disposition,
            leaf.reason,
            record.offset,
            record.timestamp,
            record.key or b"",
            record.value or b"",
        )
        if expected != data:
            self.findings.add(
                Finding(
                    self._log, f"it is not the record that Kafka has at {leaf.offset}", position
                )
            )

    def _lacks(self, position: int, record: Any) -> None:
        self._at += 1
        self.findings.add(
            Finding(
                self._log,
                f"Kafka's record at offset {record.offset} should stand before it: taken out",
                position,
            )
        )

    def finish(self) -> None:
        """Look for records after the last entry that should be in the log."""
        while (record := self._next()) is not None:
            self._at += 1
            self.findings.add(
                Finding(
                    self._log,
                    f"Kafka's record at offset {record.offset}, which the head has passed, is not"
                    " in the log",
                    self._position,
                )
            )
