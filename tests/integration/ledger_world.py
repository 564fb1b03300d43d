"""The ledger's writing side on the real broker and database: topics, workers, and what must hold.

A world is a topic and a database of its own on parts that many tests share. Its reference is the
topic: `check` reads it again and holds every leaf, tile, proof, count and stream of the database
against what the naive log of the unit tests makes of the very same records.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from bench import usage_load
from tests.integration.free_port import free_port
from tests.unit.ledger.reference import ReferenceLog

from kernel import merkle
from kernel.placement import usage_log
from kernel.tiles import decode_bundle
from ledger.adapters import database
from ledger.adapters.archive import Archive
from ledger.adapters.leaves import LeafReader
from ledger.adapters.migrate import SCHEMA
from ledger.adapters.nodes import NodeReader
from ledger.adapters.source import KafkaTopic, PartitionSource
from ledger.adapters.workforce import Workforce
from ledger.domain.batch import Record
from ledger.domain.tree import TreeBuilder
from tollbook.ledger.v1 import ledger_pb2
from tollbook.stack import Stack

GROUND: Final = ("kafka", "postgres", "database")
"""The parts of a stack that a world stands on."""
WAIT_S: Final = 120.0
_PROOFS: Final = 8
_POOL: Final = 6

Values = Iterator[tuple[bytes, bytes]]


class Disagreement(AssertionError):
    """The ledger is not what its topic says."""


async def _no_pause() -> None:
    """As fast as it goes."""


class _Batch(NamedTuple):
    builder: Any
    records: list[tuple[bytes, bytes | None]]


def _filled(
    builder: Any, records: Iterator[tuple[bytes, bytes | None]]
) -> tuple[_Batch, list[tuple[bytes, bytes | None]]]:
    """A batch of as many records as fit, and the one that did not."""
    taken: list[tuple[bytes, bytes | None]] = []
    for key, value in records:
        if builder.append(key=key, value=value, timestamp=None) is None:
            assert taken, "the record does not fit a batch"
            return _Batch(builder, taken), [(key, value)]
        taken.append((key, value))
    return _Batch(builder, taken), []


async def until(what: str, holds: Callable[[], Awaitable[Any]], wait_s: float = WAIT_S) -> Any:
    """Ask until the answer is true; gives it."""
    deadline = time.monotonic() + wait_s
    while not (answer := await holds()):
        assert time.monotonic() < deadline, f"not within {wait_s:.0f} s: {what}"
        await asyncio.sleep(0.02)
    return answer


class Worker:
    """A worker process."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.health = f"127.0.0.1:{free_port()}"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ledger.entrypoints.worker"],
                env={**environment, "TOLLBOOK_HEALTH_ADDRESS": self.health},
                stdout=output,
                stderr=output,
            )

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and its status."""
        self.process.terminate()
        return self.process.wait(WAIT_S)

    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")


class LedgerWorld:
    """A topic and a database on a running stack."""

    def __init__(self, stack: Stack, partitions: int, folder: Path) -> None:
        name = uuid.uuid4().hex[:12]
        self.stack = stack
        self.partitions = partitions
        self.folder = folder
        self.topic = f"ledger-{name}"
        self.database = f"ledger_{name}"
        self.sent: list[int] = [0] * partitions
        """Records that were produced and acknowledged, by partition, repeats not counted."""
        self.ready = False
        """What the last worker in this process said of itself."""
        self._workers: list[Worker] = []
        self._environment = stack.environment()

    @property
    def kafka(self) -> str:
        return self._environment["TOLLBOOK_KAFKA"]

    def dsn(self, setting: str = "TOLLBOOK_LEDGER_POSTGRES", address: str = "") -> str:
        """The database's address for a role; through a proxy when its address is given."""
        parts = urlsplit(self._environment[setting])._replace(path=f"/{self.database}")
        if address:
            parts = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{address}")
        return urlunsplit(parts)

    @property
    def postgres_address(self) -> str:
        """HOST:PORT of the database."""
        return urlsplit(self._environment["TOLLBOOK_LEDGER_POSTGRES"]).netloc.rpartition("@")[2]

    def archive(self) -> Archive:
        """Where this world's sealed segments are."""
        return Archive(str(self.folder / "segments"))

    async def make(self, tablespace: str = "") -> None:
        """Topic, database and schema."""
        db = await asyncpg.connect(self._environment["TOLLBOOK_POSTGRES"])
        try:
            where = f' TABLESPACE "{tablespace}"' if tablespace else ""
            await db.execute(f'CREATE DATABASE "{self.database}"{where}')
        finally:
            await db.close()
        password = self._environment["TOLLBOOK_LEDGER_DB_PASSWORD"]
        await SCHEMA.migrate(self.dsn("TOLLBOOK_POSTGRES"), password)
        await self.make_topic()
        self.db = await asyncpg.create_pool(
            self.dsn("TOLLBOOK_POSTGRES"),
            # Two at least are kept: a new one writes a file, which a full disk refuses.
            min_size=2,
            max_size=3,
            max_inactive_connection_lifetime=0,
            server_settings={"search_path": "ledger"},
        )

    async def make_topic(self) -> None:
        async with self.admin() as admin:
            await admin.create_topics([NewTopic(self.topic, self.partitions, 1)])
        await self.wait_topic()

    async def wait_topic(self) -> None:
        """Until the brokers show the topic with all its partitions and their leaders."""
        brokers = KafkaTopic(self.kafka, self.topic)

        async def is_there() -> bool:
            try:
                await brokers.open()
                found = await brokers.describe()
            except (KafkaError, OSError, TimeoutError):
                await brokers.close()
                return False
            return found is not None and sum(n >= 0 for n in found.leaders.values()) == (
                self.partitions
            )

        try:
            await until("the topic is there", is_there)
        finally:
            await brokers.close()

    async def delete_topic(self) -> None:
        """Until the brokers do not know it any more."""
        async with self.admin() as admin:
            await admin.delete_topics([self.topic])
        brokers = KafkaTopic(self.kafka, self.topic)
        await brokers.open()

        async def is_gone() -> bool:
            return await brokers.describe() is None

        try:
            await until("the topic is gone", is_gone)
        finally:
            await brokers.close()

    async def add_partitions(self, total: int) -> None:
        async with self.admin() as admin:
            await admin.create_partitions({self.topic: NewPartitions(total)})
        self.sent += [0] * (total - self.partitions)
        self.partitions = total
        await self.wait_topic()

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def remove(self) -> None:
        """Stop the workers, drop topic and database."""
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.send(signal.SIGCONT)
                worker.kill()
        await self.db.close()
        async with self.admin() as admin:
            await admin.delete_topics([self.topic])
        db = await asyncpg.connect(self._environment["TOLLBOOK_POSTGRES"])
        try:
            await db.execute(f'DROP DATABASE "{self.database}" WITH (FORCE)')
        finally:
            await db.close()

    # Workers ------------------------------------------------------------------------------

    def start_worker(self, address: str = "", **settings: Any) -> Worker:
        """A worker process; `settings` by their names without the prefix."""
        environment = {
            **os.environ,
            **self._environment,
            "TOLLBOOK_TOPIC": self.topic,
            "TOLLBOOK_PARTITIONS": str(self.partitions),
            "TOLLBOOK_LEDGER_POSTGRES": self.dsn(address=address),
            "TOLLBOOK_LEDGER_LEASE_MS": "1000",
            "TOLLBOOK_LEDGER_SEGMENTS": str(self.folder / "segments"),
            **{f"TOLLBOOK_{name.upper()}": str(value) for name, value in settings.items()},
        }
        worker = Worker(environment, self.folder / f"worker-{len(self._workers)}.log")
        self._workers.append(worker)
        return worker

    @asynccontextmanager
    async def workforce(
        self, address: str = "", lease_ms: int = 1_000, batch_records: int = 8_192
    ) -> AsyncIterator[Workforce]:
        """A worker in this process, for as long as the block runs."""
        stopped = asyncio.Event()
        pool = await database.open_pool(self.dsn(address=address), _POOL, stopped)
        force = Workforce(
            pool,
            self.kafka,
            self.topic,
            self.partitions,
            lease_ms,
            batch_records,
            LeafReader(pool, self.archive()),
        )

        async def on_ready(ready: bool) -> None:
            self.ready = ready

        task = asyncio.create_task(force.run(stopped, on_ready))
        try:
            yield force
        finally:
            stopped.set()
            await task
            pool.terminate()

    # Producing ----------------------------------------------------------------------------

    def values(self, partition: int, count: int, seed: int = 1) -> Values:
        """(key, value) of usable records, one stream without a gap."""
        return usage_load.values(partition, self.partitions, count, seed)

    async def produce(self, count: int, seed: int = 1) -> None:
        """As many usable records into each partition."""
        await asyncio.gather(
            *(
                self.deliver(partition, self.values(partition, count, seed))
                for partition in range(self.partitions)
            )
        )

    async def put(self, partition: int, *values: bytes | None, **options: Any) -> None:
        """Some records as they are."""
        await self.deliver(partition, [(b"key", value) for value in values], **options)

    async def deliver(
        self,
        partition: int,
        records: Iterable[tuple[bytes, bytes | None]],
        pause: Callable[[], Awaitable[None]] = _no_pause,
        batch_bytes: int = 16 * 1024,
        **options: Any,
    ) -> None:
        """As a spool does it: in order, and again from the last acknowledged one on any error.

        `pause` is awaited before each batch.
        """
        source = iter(records)
        waiting: list[tuple[bytes, bytes | None]] = []
        is_over = False
        while not is_over:
            producer = AIOKafkaProducer(
                bootstrap_servers=self.kafka,
                acks="all",
                max_batch_size=batch_bytes,
                request_timeout_ms=5_000,
                **options,
            )
            try:
                await producer.start()
                while not is_over:
                    await pause()
                    # What failed is sent first; the record that did not fit begins the next batch.
                    batch, rest = _filled(producer.create_batch(), itertools.chain(waiting, source))
                    waiting = [*batch.records, *rest]
                    if not batch.records:
                        is_over = True
                        break
                    await (
                        await producer.send_batch(batch.builder, self.topic, partition=partition)
                    )
                    self.sent[partition] += len(batch.records)
                    waiting = rest
            except (KafkaError, OSError, TimeoutError):
                await asyncio.sleep(0.1)
            finally:
                await producer.stop()

    # Looking ------------------------------------------------------------------------------

    async def heads(self) -> dict[str, Any]:
        """The usage logs' heads by name."""
        rows = await self.db.fetch("SELECT * FROM log_head WHERE name LIKE 'usage-%'")
        return {row["name"]: row for row in rows}

    async def head(self, partition: int = 0) -> Any:
        return (await self.heads())[usage_log(partition)]

    async def size(self) -> int:
        """Entries of all usage logs; errors while the database is away are none."""
        return sum(head["size"] for head in (await self.heads()).values())

    async def wait_size(self, size: int, wait_s: float = WAIT_S) -> None:
        async def is_there() -> bool:
            try:
                return await self.size() >= size
            except database.AWAY:
                return False

        await until(f"{size} entries", is_there, wait_s)

    async def wait_read(self, wait_s: float = WAIT_S) -> None:
        """Until the logs hold every record that the topic has."""
        ends = await self.ends()

        async def is_read() -> bool:
            try:
                heads = await self.heads()
            except database.AWAY:
                return False
            return all(
                end == 0 or (name in heads and heads[name]["next_offset"] >= end)
                for name, end in ends.items()
            )

        await until(f"all is read: {ends}", is_read, wait_s)

    async def ends(self) -> dict[str, int]:
        """The topic's end offsets by log."""
        parts = [TopicPartition(self.topic, number) for number in range(self.partitions)]
        found: dict[Any, int] = {}

        async def answered() -> bool:
            consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka, request_timeout_ms=5_000)
            try:
                await consumer.start()
                found.update(await consumer.end_offsets(parts))
            except (KafkaError, OSError, TimeoutError):
                return False  # a broker that has just come back does not know every leader yet
            finally:
                await consumer.stop()
            return True

        await until("the broker tells the ends", answered)
        return {usage_log(part.partition): end for part, end in found.items()}

    async def records(self, partition: int, end: int) -> list[Record]:
        """What the topic holds, from its beginning."""
        source = PartitionSource(self.kafka, self.topic, partition)
        await source.start(b"", None)
        found: list[Record] = []
        offset = 0
        try:
            while offset < end:
                fetched = await source.fetch(offset)
                found += fetched.columns.records()
                offset = fetched.next_offset
        finally:
            await source.close()
        return found

    async def entries(self, partition: int) -> list[bytes]:
        """The leaves of a log, whose chunks must follow one another without a gap."""
        head = await self.head(partition)
        found: list[bytes] = []
        async with self.db.acquire() as db, db.transaction():
            async for first, entries, data in db.cursor(
                "SELECT first_position, entries, leaves FROM log_chunk WHERE log_id = $1"
                " ORDER BY first_position",
                head["log_id"],
                prefetch=500,
            ):
                if first != len(found):
                    raise Disagreement(f"{head['name']}: {first} follows {len(found) - 1}")
                part = decode_bundle(data)
                if len(part) != entries:
                    raise Disagreement(f"{head['name']}: the chunk at {first} is not whole")
                found += part
        return found

    # Checking -----------------------------------------------------------------------------

    async def check(self, *, complete: bool = True, wait_s: float = WAIT_S) -> int:
        """Hold everything against the topic; gives how many records it has, repeats with them.

        `complete`: what was sent by `deliver` is all there is, all of it usable, none of it of
        another sender: then it must be accepted, in the order in which it was sent.
        """
        await self.wait_read(wait_s)
        ends = await self.ends()
        total = 0
        for partition in range(self.partitions):
            end = ends[usage_log(partition)]
            if end:
                total += await self._check_log(partition, end, complete)
        return total

    async def _check_log(self, partition: int, end: int, complete: bool) -> int:
        name = usage_log(partition)
        reference = ReferenceLog()
        records = await self.records(partition, end)
        for record in records:
            reference.take(record)
        stored = await self.entries(partition)
        for position, (found, expected) in enumerate(zip(stored, reference.entries, strict=False)):
            if found != expected:
                raise Disagreement(f"{name}: position {position} is not the topic's record")
        if len(stored) != len(reference.entries):
            raise Disagreement(f"{name}: {len(stored)} of {len(reference.entries)} records")
        head = await self.head(partition)
        counts = [head[word] for word in ("accepted", "duplicate", "conflict", "rejected")]
        if counts != reference.counts() or head["size"] != len(stored):
            raise Disagreement(f"{name}: {counts} are counted, {reference.counts()} are there")
        await self._check_streams(name, head["log_id"], reference)
        await self._check_tree(name, head, stored)
        if complete:
            self._check_complete(partition, reference, counts)
        return len(stored)

    def _check_complete(
        self, partition: int, reference: ReferenceLog, counts: Sequence[int]
    ) -> None:
        accepted, _duplicate, conflict, rejected = counts
        if (accepted, conflict, rejected) != (self.sent[partition], 0, 0):
            raise Disagreement(f"partition {partition}: sent {self.sent[partition]}, got {counts}")
        # Events are numbered within a seed in the order of sending; a dict keeps that of arrival.
        following: Counter[str] = Counter()
        for _, _, event_id in reference.accepted:
            seed, number = event_id[:8], int(event_id[8:], 16)
            if number != following[seed]:
                raise Disagreement(f"partition {partition}: {event_id} follows {following[seed]}")
            following[seed] += 1

    async def _check_streams(self, name: str, log_id: int, reference: ReferenceLog) -> None:
        rows = await self.db.fetch("SELECT * FROM producer_stream WHERE log_id = $1", log_id)
        streams = {row["stream_id"]: row for row in rows}
        if streams.keys() != reference.seen.keys():
            raise Disagreement(f"{name}: streams {streams.keys()} are known")
        for stream_id, row in streams.items():
            missing = row["missing"]
            gaps = {
                number
                for first, end in zip(missing[::2], missing[1::2], strict=True)
                for number in range(first, end)
            }
            if (row["next_seq"], gaps) != (
                max(reference.seen[stream_id]) + 1,
                reference.missing(stream_id),
            ):
                raise Disagreement(f"{name}: stream {stream_id} is {row}")

    async def _check_tree(self, name: str, head: Any, stored: Sequence[bytes]) -> None:
        hashes = [merkle.leaf_hash(leaf) for leaf in stored]
        tree = TreeBuilder()
        expected = tree.extend(hashes)
        if head["root"] != tree.root() or head["root"] != merkle.root_of(hashes):
            raise Disagreement(f"{name}: the head's root is not that of its leaves")
        rows = await self.db.fetch(
            "SELECT level, tile_index, hashes FROM log_tile WHERE log_id = $1", head["log_id"]
        )
        if sorted(map(tuple, rows)) != sorted(map(tuple, expected)):
            raise Disagreement(f"{name}: the tiles are not those of its leaves")
        size, log_id = len(stored), head["log_id"]
        reader = NodeReader(self.db)
        some = random.Random(size)
        for _ in range(_PROOFS):
            index, first = some.randrange(size), some.randrange(1, size + 1)
            included = functools.partial(merkle.inclusion_proof, index, size)
            proof = await reader.run(log_id, included)
            merkle.verify_inclusion(index, size, hashes[index], proof, head["root"])
            consistent = functools.partial(merkle.consistency_proof, first, size)
            path = await reader.run(log_id, consistent)
            old = merkle.root_of(hashes[:first])
            merkle.verify_consistency(first, size, old, head["root"], path)


@asynccontextmanager
async def ledger_world(
    stack: Stack, folder: Path, partitions: int = 1, tablespace: str = ""
) -> AsyncIterator[LedgerWorld]:
    """A world for as long as the block runs."""
    await asyncio.to_thread(stack.up, GROUND)
    world = LedgerWorld(stack, partitions, folder)
    await world.make(tablespace)
    try:
        yield world
    finally:
        await asyncio.to_thread(stack.up, GROUND)
        await world.remove()


def dispositions(entries: Sequence[bytes]) -> list[str]:
    """The dispositions of leaves by name."""
    return [
        ledger_pb2.Disposition.Name(entry[2]).removeprefix("DISPOSITION_")  # type: ignore[arg-type]
        for entry in entries
    ]
