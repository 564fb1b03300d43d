"""The publisher on the real broker: in order, until acknowledged, the same record again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from aiokafka.client import AIOKafkaClient
from tests.integration.inference_service import TOPIC, gaps, topic, unique

from inference.adapters.publisher import Publisher
from inference.adapters.spool import Spool
from inference.app.streams import Streams
from inference.domain import records
from tollbook.stack import Stack
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = pytest.mark.integration

REFUSING = "127.0.0.1:9"
"""The port of `discard`, which nothing listens at."""


@asynccontextmanager
async def publishing(
    folder: Path, kafka: str, name: str = TOPIC, partitions: int = 4
) -> AsyncIterator[tuple[Spool, Publisher]]:
    spool = Spool.open(folder)
    publisher = Publisher(spool, kafka, name, partitions)
    spool.on_commit = publisher.wake
    spool.start()
    task = asyncio.create_task(publisher.run())
    try:
        yield spool, publisher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await spool.close()


def write(spool: Spool, streams: Streams, first: int, count: int) -> None:
    """Append readings of `count` engines, which spread over the partitions."""
    for number in range(first, first + count):
        name = f"{streams.boot}/engine-{number}"
        outbound = streams.engine_reading(usage.EngineReading(engine_id=name))
        spool.append(records.Noted(records.EngineCount(name, 1, 1, {}, True), outbound))


async def test_kill_the_broker_over_and_over_and_every_record_is_there(
    broker: Stack, tmp_path: Path
) -> None:
    kafka = broker.address("kafka")
    async with publishing(tmp_path, kafka) as (spool, publisher):
        streams = Streams(spool.journal, "pub/boot1", 4)
        for round_number in range(3):
            for part in range(10):
                write(spool, streams, round_number * 3_000 + part * 300, 300)
                await spool.durable()
            # In the middle of what is being sent.
            await asyncio.to_thread(broker.kill, "kafka", signal.SIGKILL)
            await asyncio.to_thread(broker.wait_ready, "kafka")
        await asyncio.wait_for(publisher.flushed(), 120)
    found = [r for r in await topic(kafka) if r.record.stream_id.startswith("pub/boot1/")]
    assert len(unique(found)) == 9_000
    assert gaps(found) == []


@contextmanager
def connecting() -> Iterator[asyncio.Event]:
    """An event that is set once a client is connecting."""
    begun = asyncio.Event()
    real = AIOKafkaClient.bootstrap

    async def bootstrap(client: AIOKafkaClient) -> None:
        begun.set()
        await real(client)

    with patch.object(AIOKafkaClient, "bootstrap", bootstrap):
        yield begun


async def ends(task: asyncio.Task[object], begun: asyncio.Event, turns: int) -> bool:
    """Whether a task ends that is told to so many turns of the loop after it began to connect."""
    await asyncio.wait_for(begun.wait(), 60)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=60)
    ended = task.done()
    while not task.done():
        # Each word may be lost again.
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
    return ended


async def test_a_publisher_that_is_told_to_end_while_it_connects_ends(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    spool.start()
    write(spool, Streams(spool.journal, "pub/boot4", 4), 0, 1)
    await spool.durable()
    # At each of the first turns it is somewhere else: connecting, failing, letting its client go.
    for turns in range(12):
        with connecting() as begun:
            publisher = Publisher(spool, REFUSING, TOPIC, 4)
            assert await ends(asyncio.create_task(publisher.run()), begun, turns)
    await spool.close()


async def test_what_was_not_acknowledged_is_sent_by_the_next_process(
    broker: Stack, tmp_path: Path
) -> None:
    kafka = broker.address("kafka")
    async with publishing(tmp_path, REFUSING) as (spool, _):
        write(spool, Streams(spool.journal, "pub/boot2", 4), 0, 700)
        await spool.durable()
        assert len(spool.journal.outbox) == 700
    async with publishing(tmp_path, kafka) as (spool, publisher):
        await asyncio.wait_for(publisher.flushed(), 120)
    async with publishing(tmp_path, kafka) as (spool, _):
        assert not spool.journal.outbox
    found = [r for r in await topic(kafka) if r.record.stream_id.startswith("pub/boot2/")]
    assert len(unique(found)) == len(found) == 700
    assert gaps(found) == []


@pytest.mark.parametrize(("name", "partitions"), [(TOPIC, 3), ("no-such-topic", 4)])
async def test_a_topic_that_does_not_fit_gets_nothing(
    broker: Stack, tmp_path: Path, name: str, partitions: int, capfd: pytest.CaptureFixture[str]
) -> None:
    kafka = broker.address("kafka")
    before = len(await topic(kafka))
    async with publishing(tmp_path, kafka, name, partitions) as (spool, _):
        write(spool, Streams(spool.journal, "pub/boot3", partitions), 0, 5)
        await spool.durable()
        deadline = time.monotonic() + 120
        told = ""
        while "usage records wait in the spool" not in told:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
            told += "".join(capfd.readouterr())
        assert len(spool.journal.outbox) == 5
    assert len(await topic(kafka)) == before
