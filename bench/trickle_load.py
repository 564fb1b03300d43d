"""Usage records at an even rate, sent by a process of its own, as a producer is.

A record has the Kafka timestamp of when it was made, and is sent as aiokafka's own `send` would:
what has come for a partition while its last batch was under way, or LINGER_S long, is one batch.
Records are made ready before the first is due, and batches are appended to directly, so that the
load takes little of the two processors that it shares with what is measured; what it waits for
(the broker, a processor) after a record was made counts as lateness of that record.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any, Final

import uvloop
from aiokafka import AIOKafkaProducer

from bench import usage_load

LINGER_S: Final = 0.002
_TICK_S: Final = 0.001
_WAIT_S: Final = 60


class _Lane:
    """One partition: what was made and is not sent yet, in order."""

    def __init__(self, records: list[tuple[bytes, bytes]]) -> None:
        self.records = records
        self.made_ms: list[int] = []
        """Of each record that was made, the milliseconds of the clock."""
        self.sent = 0


async def _send(producer: Any, topic: str, partition: int, lane: _Lane) -> None:
    """Send a lane's records as they are made, one batch at a time, until all are."""
    while lane.sent < len(lane.records):
        if lane.sent == len(lane.made_ms):
            await asyncio.sleep(_TICK_S)
            continue
        await asyncio.sleep(LINGER_S)
        batch = producer.create_batch()
        while lane.sent < len(lane.made_ms):
            key, value = lane.records[lane.sent]
            if batch.append(key=key, value=value, timestamp=lane.made_ms[lane.sent]) is None:
                break
            lane.sent += 1
        await (await producer.send_batch(batch, topic, partition=partition))


async def _make(lanes: list[_Lane], rate: int, total: int) -> None:
    """Make records when they are due, one lane after the other."""
    began = time.monotonic()
    made = 0
    while made < total:
        due = min(total, int((time.monotonic() - began) * rate))
        now_ms = time.time_ns() // 1_000_000
        while made < due:
            lanes[made % len(lanes)].made_ms.append(now_ms)
            made += 1
        await asyncio.sleep(_TICK_S)


async def _run(given: argparse.Namespace) -> int:
    total = int(given.rate * given.seconds)
    lanes = []
    for partition in range(given.partitions):
        count = len(range(partition, total, given.partitions))
        values = usage_load.values(partition, given.partitions, count, given.seed)
        lanes.append(_Lane(list(islice(values, count))))
    producer = AIOKafkaProducer(
        bootstrap_servers=given.kafka, acks="all", max_batch_size=usage_load.BATCH_BYTES
    )
    await producer.start()
    # Nothing here makes cycles worth a pause.
    gc.collect()
    gc.disable()
    try:
        sending = [_send(producer, given.topic, at, lane) for at, lane in enumerate(lanes)]
        await asyncio.gather(_make(lanes, given.rate, total), *sending)
    finally:
        await producer.stop()
    return total


async def trickle(
    kafka: str, topic: str, partitions: int, rate: int, seconds: float, seed: int
) -> int:
    """Send `rate` records a second for some time, evenly; gives how many were sent.

    Errors: RuntimeError when the process fails.
    """
    words = (kafka, topic, str(partitions), str(rate), str(seconds), str(seed))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", __name__, *words),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    out, _ = await asyncio.wait_for(process.communicate(), seconds + _WAIT_S)
    if process.returncode:
        raise RuntimeError(f"the load ended with status {process.returncode}; see above")
    sent: int = json.loads(out)
    return sent


def main() -> None:
    """Send, and print how many were sent."""
    parser = argparse.ArgumentParser(prog="bench.trickle_load", description=__doc__)
    for name, kind in (("kafka", str), ("topic", str), ("partitions", int), ("rate", int)):
        parser.add_argument(name, type=kind)
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int)
    print(json.dumps(uvloop.run(_run(parser.parse_args()))))


if __name__ == "__main__":
    main()
