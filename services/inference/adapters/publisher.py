"""From the spool to the broker: every record, in order, until it is acknowledged.

Owns the producer and the topic. A record was given its partition and its place
in its stream when it was written, so sending it again is the same record again.
After any error the producer is thrown away and what is not acknowledged is sent
anew: what a broken producer still had in hand is of no interest.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from inference.adapters.spool import Spool
from inference.domain import records
from inference.domain.journal import Pending
from kernel import telemetry

log = structlog.get_logger()

BATCH_RECORDS: Final = 500
SEND_TIMEOUT_MS: Final = 10_000
CONNECT_TIMEOUT_MS: Final = 10_000
MIN_BACKOFF_MS: Final = 100
MAX_BACKOFF_MS: Final = 2_000
MAX_RECORD_BYTES: Final = 8 * 1024 * 1024


class TopicUnusable(Exception):
    """The topic is missing or has another number of partitions."""


class Publisher:
    """Sends the spool's records. The broker may be away for as long as it likes."""

    def __init__(self, spool: Spool, servers: str, topic: str, partitions: int) -> None:
        self._spool = spool
        self._servers = servers
        self._topic = topic
        self._partitions = partitions
        self._producer: AIOKafkaProducer | None = None
        self._wanted = asyncio.Event()
        self._progress = asyncio.Event()

    def wake(self) -> None:
        """There may be something to send."""
        self._wanted.set()

    async def run(self) -> None:
        """Send for ever."""
        backoff_ms = MIN_BACKOFF_MS
        try:
            while True:
                self._wanted.clear()
                batch = self._next_batch()
                if not batch:
                    await self._wanted.wait()
                    continue
                try:
                    await self._send(batch)
                    backoff_ms = MIN_BACKOFF_MS
                except (KafkaError, TopicUnusable, OSError, TimeoutError) as error:
                    log.warning(
                        "usage records wait in the spool",
                        error=f"{type(error).__name__}: {error}",
                        backlog=len(self._spool.journal.outbox),
                    )
                    await self._drop_producer()
                    await asyncio.sleep(backoff_ms / 1000)
                    backoff_ms = min(2 * backoff_ms, MAX_BACKOFF_MS)
        finally:
            await self._drop_producer()

    async def flushed(self) -> None:
        """Return when the broker has everything that is in the spool."""
        while self._spool.journal.outbox:
            self._progress.clear()
            self._wanted.set()
            await self._progress.wait()

    def _next_batch(self) -> list[Pending]:
        """The oldest records, as far as they are on disk: nothing is sent that a
        crash could take back.
        """
        batch: list[Pending] = []
        for pending in self._spool.journal.outbox:
            if len(batch) == BATCH_RECORDS or not self._spool.is_durable(pending.ref):
                break
            batch.append(pending)
        return batch

    async def _send(self, batch: list[Pending]) -> None:
        producer = self._producer or await self._connect()
        outbounds = [_outbound_of(self._spool.read(pending.ref)) for pending in batch]
        async with asyncio.timeout(SEND_TIMEOUT_MS / 1000):
            sent = [
                await producer.send(
                    self._topic,
                    value=outbound.value,
                    key=outbound.key.encode(),
                    partition=outbound.partition,
                    headers=_headers(outbound),
                )
                for outbound in outbounds
            ]
            await asyncio.gather(*sent)
        # The numbers of a stream are in order, so the last speaks for all before it.
        last = {pending.stream_id: pending.stream_seq for pending in batch}
        for stream_id, stream_seq in last.items():
            self._spool.append(records.Acked(stream_id, stream_seq))
        self._progress.set()

    async def _connect(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._servers,
            acks="all",
            linger_ms=2,
            request_timeout_ms=SEND_TIMEOUT_MS,
            max_request_size=MAX_RECORD_BYTES,
            metadata_max_age_ms=30_000,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_MS / 1000):
                await producer.start()
                found = await producer.partitions_for(self._topic)
        except BaseException:
            await _stop(producer)
            raise
        if len(found) != self._partitions:
            await _stop(producer)
            raise TopicUnusable(
                f"topic {self._topic} has {len(found)} partitions and TOLLBOOK_PARTITIONS says "
                f"{self._partitions}: an account's records would go astray"
            )
        self._producer = producer
        return producer

    async def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)


async def _stop(producer: AIOKafkaProducer) -> None:
    """Let a producer go, whatever state it is in; it may not hold up its successor."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(2):
            await producer.stop()


def _outbound_of(record: records.Record) -> records.Outbound:
    match record:
        case records.Settled() | records.Closed():
            return record.outbound
        case records.Noted(outbound=records.Outbound() as outbound):
            return outbound
        case _:
            raise AssertionError(f"{type(record).__name__} is not for the broker")


def _headers(outbound: records.Outbound) -> list[tuple[str, bytes]]:
    context = telemetry.context_of_ids(outbound.trace_id, outbound.span_id)
    return [(name, value.encode()) for name, value in telemetry.carrier_of(context).items()]
