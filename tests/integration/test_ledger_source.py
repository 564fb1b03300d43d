"""What Kafka can do to a partition, and what its reader says: on the real broker."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from tests.integration.ledger_world import until

from ledger.adapters.source import KafkaTopic, LastRead, PartitionSource, SourceError
from ledger.domain.batch import Record
from tollbook.stack.control import Stack, running_stack

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def kafka() -> Iterator[str]:
    with running_stack(parts=["kafka"]) as running:
        yield address(running)


def address(stack: Stack) -> str:
    return stack.environment()["TOLLBOOK_KAFKA"]


class Topic:
    """A topic of one partition with the numbers 0, 1, 2, ... as values."""

    def __init__(self, bootstrap: str, admin: Any) -> None:
        self.bootstrap = bootstrap
        self.admin = admin
        self.name = f"t-{uuid.uuid4().hex}"

    async def make(self) -> None:
        await self.admin.create_topics([NewTopic(self.name, 1, 1)])

    async def put(self, first: int, count: int, **options: Any) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", **options)
        await producer.start()
        try:
            for number in range(first, first + count):
                await producer.send(self.name, b"%d" % number, partition=0)
            await producer.flush()
        finally:
            await producer.stop()

    async def delete_below(self, offset: int) -> None:
        await self.admin.delete_records(
            {TopicPartition(self.name, 0): RecordsToDelete(before_offset=offset)}
        )

    def source(self) -> PartitionSource:
        return PartitionSource(self.bootstrap, self.name, 0)


@pytest.fixture
async def topic(kafka: str) -> AsyncIterator[Topic]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    made = Topic(kafka, admin)
    await made.make()
    try:
        yield made
    finally:
        await admin.close()


async def read(source: PartitionSource, offset: int, count: int) -> list[Record]:
    records: list[Record] = []
    while len(records) < count:
        fetched = await source.fetch(offset)
        records += fetched.columns.records()
        offset = fetched.next_offset
    return records


def last(record: Record) -> LastRead:
    return LastRead(record[0], record.__eq__)


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_records_of_every_compression_are_read_from_any_offset(
    topic: Topic, compression: str | None
) -> None:
    await topic.put(0, 50, compression_type=compression, linger_ms=20)
    source = topic.source()
    await source.start(b"", None)
    try:
        assert [item[3] for item in await read(source, 0, 50)] == [b"%d" % n for n in range(50)]
        # In the middle of a batch as well: what lies before is not given again.
        assert [item[0] for item in await read(source, 17, 33)] == list(range(17, 50))
    finally:
        await source.close()


async def test_records_deleted_after_they_were_read_stop_nothing(topic: Topic) -> None:
    await topic.put(0, 20)
    source = topic.source()
    topic_id = await source.start(b"", None)
    records = await read(source, 0, 20)
    await source.close()
    await topic.delete_below(20)
    again = topic.source()
    assert await again.start(topic_id, last(records[-1])) == topic_id
    await topic.put(20, 3)
    try:
        assert [item[0] for item in await read(again, 20, 3)] == [20, 21, 22]
    finally:
        await again.close()


async def test_records_deleted_before_they_were_read_are_said_with_the_true_bounds(
    topic: Topic,
) -> None:
    await topic.put(0, 20)
    source = topic.source()
    await source.start(b"", None)
    await topic.delete_below(15)
    try:
        with pytest.raises(SourceError, match=r"offset 10 is wanted next.*holds \[15, 20\)"):
            await source.fetch(10)
        with pytest.raises(SourceError, match=r"offset 21 is wanted next.*holds \[15, 20\)"):
            await source.fetch(21)
    finally:
        await source.close()


async def test_a_partition_shorter_than_the_log_is_refused(topic: Topic) -> None:
    await topic.put(0, 5)
    source = topic.source()
    try:
        with pytest.raises(SourceError, match=r"offset 10 is wanted next.*holds \[0, 5\)"):
            await source.start(b"", LastRead(9, lambda record: True))
    finally:
        await source.close()


async def test_another_record_at_the_last_ones_offset_is_refused(topic: Topic) -> None:
    await topic.put(0, 5)
    source = topic.source()
    try:
        with pytest.raises(SourceError, match="offset 4 is not the one"):
            await source.start(b"", last((4, 1, None, b"what stood there before")))
    finally:
        await source.close()


async def test_a_topic_made_again_under_its_name_is_refused(topic: Topic) -> None:
    await topic.put(0, 5)
    source = topic.source()
    old_id = await source.start(b"", None)
    await source.close()
    await topic.admin.delete_topics([topic.name])
    await until_gone(topic)
    await topic.make()
    await topic.put(0, 5)
    again = topic.source()
    try:
        with pytest.raises(SourceError, match=f"made again.*{old_id.hex()}"):
            await again.start(old_id, None)
    finally:
        await again.close()


async def until_gone(topic: Topic) -> None:
    brokers = KafkaTopic(topic.bootstrap, topic.name)
    await brokers.open()
    try:

        async def is_gone() -> bool:
            return await brokers.describe() is None

        await until("the topic is gone", is_gone)
    finally:
        await brokers.close()
