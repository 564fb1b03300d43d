"""A partition of the usage topic as the worker reads it: records from an offset on, in order.

The port between the ledger and Kafka. Owns leaders, retries and limits; what
cannot be repaired by trying again stops the worker with a SourceError:
another topic under the same name, an offset that is no longer (or not yet)
there, records that do not pass their checksum. Never commits an offset that
anything depends on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import structlog
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.offset import OffsetRequest, OffsetResetStrategy

from ledger.adapters import records, wire
from ledger.domain.batch import Record
from ledger.domain.columns import Columns

log = structlog.get_logger()

FETCH_BYTES: Final = 2 * 1024 * 1024
FETCH_WAIT_MS: Final = 500
_REQUEST_TIMEOUT_MS: Final = 10_000
_RETRY_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0)

_NO_ERROR: Final = 0
_OFFSET_OUT_OF_RANGE: Final = 1
_CORRUPT_MESSAGE: Final = 2
_UNKNOWN_TOPIC_OR_PARTITION: Final = 3
_UNKNOWN_TOPIC_ID: Final = 100
_INCONSISTENT_TOPIC_ID: Final = 103


class SourceError(RuntimeError):
    """The topic is not what the log was built from; trying again does not help."""


class TopicState(NamedTuple):
    """A topic as the brokers describe it."""

    topic_id: bytes
    leaders: dict[int, int]
    """Partition -> node id of its leader (-1: none now)."""


class Fetched(NamedTuple):
    """Records in order of offset, and the offset to go on from."""

    from_offset: int
    columns: Columns
    next_offset: int
    high_watermark: int


class KafkaTopic:
    """One connection to the brokers, and what they say of the topic."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.topic = topic
        self._bootstrap = bootstrap.split(",")
        self._client: Any = None

    async def open(self) -> None:
        """Connect. Errors: KafkaError while no broker answers."""
        if self._client is not None:
            return
        client = AIOKafkaClient(
            bootstrap_servers=self._bootstrap,
            client_id="tollbook-ledger",
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            metadata_max_age_ms=60_000,
        )
        client.set_topics([self.topic])
        try:
            await client.bootstrap()
        except BaseException:
            await client.close()
            raise
        self._client = client

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(KafkaError, OSError):
                await client.close()

    async def send(self, node: int, request: Any) -> Any:
        """Send a request to a broker. Errors: KafkaError."""
        async with asyncio.timeout(_REQUEST_TIMEOUT_MS / 1000 + 1):
            return await self._client.send(node, request)

    async def describe(self) -> TopicState | None:
        """The topic, or None when there is none of its name. Errors: KafkaError."""
        node = self._client.get_random_node()
        if node is None:
            raise KafkaError("no broker is known")
        response = await self.send(node, wire.Metadata(self.topic))
        for topic in response.topics:
            error, name, topic_id, _internal, partitions, _operations, _tags = topic
            if name != self.topic or error == _UNKNOWN_TOPIC_OR_PARTITION:
                continue
            if error != _NO_ERROR:
                raise KafkaError(f"the brokers describe topic {name} with error {error}")
            return TopicState(topic_id, {part[1]: part[2] for part in partitions})
        return None


class LastRead(NamedTuple):
    """The last record that was read, and how to know it again."""

    offset: int
    is_same: Callable[[Record], bool]


class PartitionSource:
    """Reads one partition. Use: `open`, then `fetch` with growing offsets, then `close`.

    After each (re)connection the last record read must stand at its offset as
    it did: a broker that lost its end and was written anew has other records
    at the same offsets, which no offset tells.
    """

    def __init__(self, bootstrap: str, topic: str, partition: int) -> None:
        self._kafka = KafkaTopic(bootstrap, topic)
        self._partition = partition
        self._topic_id = b""
        self._leader = -1
        self._last: LastRead | None = None
        self._failures = 0

    @property
    def _name(self) -> str:
        return f"{self._kafka.topic}/{self._partition}"

    async def start(self, known_topic_id: bytes, last: LastRead | None) -> bytes:
        """Find the partition; gives the topic's id.

        `known_topic_id` is what the log was built from so far, empty when it is
        new; `last` is the last record in it. Errors: SourceError when the topic
        is another one, or its records are.
        """
        self._last = last
        return await self._open(known_topic_id)

    async def _open(self, known_topic_id: bytes) -> bytes:
        while True:
            try:
                await self._kafka.open()
                found = await self._kafka.describe()
            except (KafkaError, OSError, TimeoutError) as error:
                await self._failed("broker away", error)
                continue
            if found is None or self._partition not in found.leaders:
                await self._failed("partition not there", None)
                continue
            self._check_topic(known_topic_id, found.topic_id)
            self._topic_id = found.topic_id
            self._leader = found.leaders[self._partition]
            if self._leader < 0:
                await self._failed("partition has no leader", None)
                continue
            try:
                if self._last is not None:
                    await self._check_last(self._last)
            except (KafkaError, OSError, TimeoutError) as error:
                await self._failed("broker away", error)
                continue
            self._failures = 0
            return found.topic_id

    async def _check_last(self, last: LastRead) -> None:
        """Errors: SourceError when the partition holds another record at the last one's offset."""
        code, part = _the_partition(await self._ask(last.offset, max_wait_ms=0))
        if code == _OFFSET_OUT_OF_RANGE:
            first, _ = await self._bounds()
            if last.offset < first:
                return  # Retention dropped it after it was read, as it may.
            await self._refuse(code, last.offset + 1)
        if code != _NO_ERROR or part is None:
            raise KafkaError(f"fetch error {code}")
        found = self._decode(last.offset, part).columns
        # Nothing there: the end was lost, or (next offset beyond) the record was compacted away.
        if not (len(found) and last.is_same(found.record(0))):
            raise SourceError(
                f"{self._name}: the record at offset {last.offset} is not the one that the log was"
                " built from: the partition lost its end and was written anew. Nothing was read"
                " from it. Restore the partition, or rebuild with a topic of another name"
            )

    async def _bounds(self) -> tuple[int, int]:
        """[first, end) of the offsets that the partition holds. Errors: KafkaError."""
        found: list[int] = []
        for which in (OffsetResetStrategy.EARLIEST, OffsetResetStrategy.LATEST):
            wanted = [(self._kafka.topic, [(self._partition, which)])]
            response = await self._kafka.send(self._leader, OffsetRequest(-1, 0, wanted))
            for _topic, parts in response.topics:
                for _partition, code, _timestamp, offset in parts:
                    if code != _NO_ERROR:
                        raise KafkaError(f"list offsets error {code}")
                    found.append(offset)
        first, end = found
        return first, end

    async def _ask(self, offset: int, max_wait_ms: int) -> Any:
        request = wire.Fetch(self._topic_id, self._partition, offset, max_wait_ms, FETCH_BYTES)
        return await self._kafka.send(self._leader, request)

    def _check_topic(self, known: bytes, found: bytes) -> None:
        if known and known != found:
            raise SourceError(
                f"topic {self._kafka.topic} was made again: the log was built from topic id"
                f" {known.hex()}, the topic now has id {found.hex()}. Nothing was read from it."
                " Bring the old topic back, or give the usage a topic of another name and new logs"
            )

    async def close(self) -> None:
        """Disconnect."""
        await self._kafka.close()

    async def _failed(self, what: str, error: BaseException | None) -> None:
        """Say it once, wait a little, and connect anew."""
        if self._failures == 0:
            log.warning(what, partition=self._name, error=repr(error) if error else "")
        delay_s = _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
        self._failures += 1
        await self._kafka.close()
        await asyncio.sleep(delay_s)

    async def fetch(self, offset: int) -> Fetched:
        """Records from `offset` on; none when none came within half a second.

        Errors: SourceError.
        """
        while True:
            try:
                response = await self._ask(offset, FETCH_WAIT_MS)
            except (KafkaError, OSError, TimeoutError) as error:
                await self._failed("broker away", error)
                await self._open(self._topic_id)
                continue
            code, part = _the_partition(response)
            if code == _NO_ERROR and part is not None:
                self._failures = 0
                fetched = self._decode(offset, part)
                if len(fetched.columns):
                    last = fetched.columns.record(-1)
                    self._last = LastRead(last[0], last.__eq__)
                return fetched
            await self._refuse(code, offset)
            # Leader moved, broker starting, topic being deleted: ask anew, which checks the id too.
            await self._failed(f"fetch error {code}", None)
            await self._open(self._topic_id)

    async def _refuse(self, code: int, offset: int) -> None:
        """Errors: SourceError for what trying again does not repair."""
        if code == _OFFSET_OUT_OF_RANGE:
            try:
                first, end = await self._bounds()
            except (KafkaError, OSError, TimeoutError):
                return  # The broker went away meanwhile; the offset is asked for again.
            if first <= offset <= end:
                return  # It is there now: a replica that had just become leader caught up.
            raise SourceError(
                f"{self._name}: offset {offset} is wanted next, but the partition holds"
                f" [{first}, {end}): records were deleted before they were read, or the partition"
                " was truncated. Nothing was skipped; restore the records or rebuild the log"
            )
        if code == _CORRUPT_MESSAGE:
            raise SourceError(f"{self._name}: the broker says its records at {offset} are corrupt")

    def _decode(self, offset: int, part: Any) -> Fetched:
        high_watermark, data = part[2], part[7]
        try:
            columns, next_offset = records.decode(data or b"", offset)
        except records.RecordsError as error:
            raise SourceError(f"{self._name}: {error}. Nothing was read past it") from None
        return Fetched(offset, columns, next_offset, high_watermark)


def _the_partition(response: Any) -> tuple[int, Any]:
    """(error code, partition) of a response about one partition."""
    if response.error_code != _NO_ERROR:
        return response.error_code, None
    for _topic_id, partitions, _tags in response.topics:
        for part in partitions:
            return part[1], part
    return _UNKNOWN_TOPIC_ID, None
