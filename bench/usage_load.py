"""Usage records for the benches: real bytes of the contract, made fast, and put into the topic.

The bodies are real UsageEvents of a few hundred accounts; what differs from
event to event (its id, its time, its place in the stream) is written into the
serialized bytes, because serializing millions of them takes longer than the
ledger takes to store them.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer

from kernel.placement import partition_of
from tollbook.usage.v1 import usage_pb2 as usage

ACCOUNTS: Final = 400
BATCH_BYTES: Final = 256 * 1024
_ID_BYTES: Final = 24


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _tokens(
    direction: usage.Direction.ValueType, cache_use: usage.CacheUse.ValueType, amount: int
) -> usage.Quantity:
    return usage.Quantity(
        unit=usage.UNIT_TOKEN, direction=direction, cache_use=cache_use, amount=amount
    )


def _body(account: str, rng: random.Random) -> tuple[bytes, bytes]:
    """A serialized event around its id: (what comes before, what comes after)."""
    prompt, output = rng.randint(40, 4_000), rng.randint(1, 1_000)
    event = usage.UsageEvent(
        event_id="#" * _ID_BYTES,
        account_id=account,
        key_id=f"key-{account}",
        hold_id=f"hold-{rng.getrandbits(48):012x}",
        served_model=rng.choice(["tiny-qwen", "tiny-qwen-adapter", "large-qwen"]),
        base_model="tiny-qwen",
        quantities=[
            _tokens(usage.DIRECTION_IN, usage.CACHE_USE_NONE, prompt),
            _tokens(usage.DIRECTION_IN, usage.CACHE_USE_READ, prompt // 4),
            _tokens(usage.DIRECTION_OUT, usage.CACHE_USE_UNSPECIFIED, output),
        ],
        outcome=usage.OUTCOME_COMPLETE,
        finish_reason=usage.FINISH_REASON_STOP,
        output_digest=hashlib.sha256(account.encode()).digest(),
        engine_id="inference-0/boot",
        choice_count=1,
    )
    event.event_time.seconds = 1_800_000_000
    event.end_time.seconds = 1_800_000_003
    before, after = event.SerializeToString().split(b"#" * _ID_BYTES)
    return before, after


def values(partition: int, partitions: int, count: int, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of `count` records for a partition: one stream without a gap."""
    rng = random.Random(seed * 1_000 + partition)
    names = [f"account-{number:04d}" for number in range(ACCOUNTS)]
    mine = [name for name in names if partition_of(name, partitions) == partition]
    bodies = [(name.encode(), *_body(name, rng)) for name in mine]
    stream_id = f"bench-{seed}/{partition}".encode()
    start = b"\x0a" + _varint(len(stream_id)) + stream_id
    trace = b"\x1a\x10" + rng.randbytes(16) + b"\x22\x08" + rng.randbytes(8)
    for seq in range(count):
        key, before, after = bodies[(seq * 7 + seq // 13) % len(bodies)]
        body = before + b"%08x%016x" % (seed, seq) + after
        place = b"" if seq == 0 else b"\x10" + _varint(seq)
        yield key, start + place + trace + b"\x2a" + _varint(len(body)) + body


def distinct_values(
    partition: int, partitions: int, count: int, seed: int
) -> Iterator[tuple[bytes, bytes]]:
    """The same records, each with a trace id, a span id and an output digest of its own, as real
    ones have: what a file of them compresses to depends on that. Slower to make.
    """
    rng = random.Random(f"{seed}/{partition}")
    for key, value in values(partition, partitions, count, seed):
        changed = bytearray(value)
        trace = value.index(b"\x1a\x10") + 2
        changed[trace : trace + 16] = rng.randbytes(16)
        changed[trace + 18 : trace + 26] = rng.randbytes(8)
        digest = value.index(b"\x92\x01\x20") + 3
        changed[digest : digest + 32] = rng.randbytes(32)
        yield key, bytes(changed)


Values = Callable[[int, int, int, int], Iterator[tuple[bytes, bytes]]]


async def fill(
    bootstrap: str,
    topic: str,
    partitions: int,
    events: int,
    seed: int,
    make: Values = values,
) -> None:
    """Put `events` records into the topic, evenly over its partitions, as fast as it goes."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", max_batch_size=BATCH_BYTES, linger_ms=20
    )
    await producer.start()
    try:
        each = events // partitions
        for partition in range(partitions):
            await _fill_partition(
                producer, topic, partition, make(partition, partitions, each, seed)
            )
    finally:
        await producer.stop()


async def _fill_partition(
    producer: Any, topic: str, partition: int, records: Iterator[tuple[bytes, bytes]]
) -> None:
    batch = producer.create_batch()
    sent: list[Any] = []
    for key, value in records:
        if batch.append(key=key, value=value, timestamp=None) is None:
            sent.append(await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            batch.append(key=key, value=value, timestamp=None)
            if len(sent) >= 8:
                await sent.pop(0)
    sent.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*sent)


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """p50, p99, p99.9 and the largest, in the samples' unit."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"p50": at(0.5), "p99": at(0.99), "p99_9": at(0.999), "max": at(1.0)}
