"""What Kafka may do to a running worker: it stops that log with a clear error, or goes on whole.

What the reader of one partition says to the same is in test_ledger_source.py.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition
from bench import usage_load
from tests.integration.ledger_world import LedgerWorld, dispositions, ledger_world, until

from kernel import leaf as leaves
from kernel.placement import partition_of, usage_log
from tollbook.ledger.v1 import ledger_pb2
from tollbook.stack import Stack

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(ground: Stack, tmp_path: Path) -> AsyncIterator[LedgerWorld]:
    async with ledger_world(ground, tmp_path, partitions=2) as made:
        yield made


async def halted(world: LedgerWorld, partition: int, *words: str) -> bool:
    why = (await world.head(partition))["halted"]
    return all(word in why for word in words)


async def not_ready(world: LedgerWorld) -> bool:
    return not world.ready


async def test_a_topic_made_again_halts_its_logs_and_nothing_of_it_is_read(
    world: LedgerWorld,
) -> None:
    async with world.workforce():
        await world.produce(100)
        await world.check()
        before = [tuple(head.values()) for head in map(whole, (await world.heads()).values())]
        await world.delete_topic()
        await world.make_topic()
        await world.produce(30, seed=2)
        for partition in range(2):
            told = functools.partial(halted, world, partition, "made again", "Nothing was read")
            await until("it is halted with the reason", told)
        await until("it is not ready", functools.partial(not_ready, world))
    assert [tuple(head.values()) for head in map(whole, (await world.heads()).values())] == before


def whole(head: dict[str, object]) -> dict[str, object]:
    """What of a head is the log's, and not its owner's."""
    words = ("name", "topic_id", "next_offset", "size", "root", "frontier", "accepted")
    return {word: head[word] for word in words}


async def test_records_deleted_before_they_were_read_halt_their_log_alone(
    world: LedgerWorld,
) -> None:
    async with world.workforce():
        await world.produce(100)
        await world.check()
    await world.produce(100, seed=2)
    async with world.admin() as admin:
        part = TopicPartition(world.topic, 1)
        await admin.delete_records({part: RecordsToDelete(before_offset=150)})
    async with world.workforce():
        told = functools.partial(halted, world, 1, "offset 100 is wanted next", "[150, 200)")
        await until("it is halted with the true bounds", told)
        await until("it is not ready", functools.partial(not_ready, world))
        await world.produce(100, seed=3)

        async def goes_on() -> bool:
            return int((await world.head(0))["size"]) == 300

        await until("the other log goes on", goes_on)
        assert (await world.head(1))["size"] == 100


async def test_partitions_that_are_added_are_read_live(world: LedgerWorld) -> None:
    """And the logs that were there before feel nothing of it."""
    # A lease that lasts, however long this process is paused.
    async with world.workforce(lease_ms=60_000):
        await world.produce(50)
        await world.check()
        epochs = {name: head["epoch"] for name, head in (await world.heads()).items()}
        await world.add_partitions(5)
        await world.produce(50, seed=2)

        async def are_read() -> bool:
            heads = await world.heads()
            return len(heads) == 5 and all(head["size"] for head in heads.values())

        await until("all five are read", are_read)
        await world.check()
        assert epochs.items() <= {n: h["epoch"] for n, h in (await world.heads()).items()}.items()


async def test_events_in_a_partition_that_is_not_their_accounts_are_told_aloud(
    world: LedgerWorld,
) -> None:
    """A producer that counts other partitions than the rest; what it sends is kept all the same."""
    values = usage_load.values(0, 3, 200, seed=7)
    with structlog.testing.capture_logs() as said:
        async with world.workforce():
            await world.produce(20)
            await world.check()
            assert not [line for line in said if line["event"] == "WRONG PARTITION"]
            await world.deliver(0, values)
            await world.check()
    [first, *_] = [line for line in said if line["event"] == "WRONG PARTITION"]
    assert (first["log"], first["belongs_in"], first["partitions"]) == (usage_log(0), 1, 2)
    assert partition_of(first["account_id"], 2) == 1


async def test_a_record_too_large_for_a_leaf_stands_aside_and_the_next_is_accepted(
    world: LedgerWorld,
) -> None:
    large = bytes(range(256)) * 3_600
    async with world.workforce():
        await world.put(0, large, batch_bytes=1_000_000)
        await world.deliver(0, world.values(0, 10))
        await world.check(complete=False)
    first, *others = await world.entries(0)
    assert dispositions([first]) == ["REJECTED"]
    leaf = leaves.decode(first)
    assert leaf.reason == ledger_pb2.REASON_OVERSIZE
    assert leaves.aside_of(leaf.value) == (hashlib.sha256(large).digest(), len(large))
    log_id = (await world.head(0))["log_id"]
    [row] = await world.db.fetch("SELECT * FROM log_aside WHERE log_id = $1", log_id)
    assert (row["position"], row["value"]) == (0, large)
    assert dispositions(others) == ["ACCEPTED"] * 10


async def test_a_change_of_compression_changes_nothing(world: LedgerWorld) -> None:
    """One stream, every codec in turn, while the worker reads."""
    async with world.workforce():
        values = list(world.values(0, 500))
        for number, codec in enumerate((None, "gzip", "snappy", "lz4", "zstd") * 2):
            part = values[number * 50 : number * 50 + 50]
            await world.deliver(0, part, compression_type=codec)
        await world.check()
    assert (await world.head(0))["accepted"] == 500


async def test_poison_in_a_crowd_of_good_records_stops_nothing(world: LedgerWorld) -> None:
    """Every record is a leaf with its reason; the counts, the alarms' source, add up."""
    good = [value for _, value in world.values(0, 300)]
    poison: list[bytes | None] = [b"", None, b"\xff" * 40, b"\x0a\x00", b'{"json": true}']
    mixed = [each for n, value in enumerate(good) for each in (value, poison[n % len(poison)])]
    async with world.workforce():
        await world.put(0, *mixed)
        await world.check(complete=False)
    head = await world.head(0)
    assert (head["accepted"], head["rejected"]) == (300, 300)
    kept = await world.db.fetch(
        "SELECT position FROM log_exception WHERE log_id = $1 ORDER BY position", head["log_id"]
    )
    assert [row["position"] for row in kept] == list(range(1, 600, 2))
    assert head["name"] == usage_log(0)
