"""Waiting until all that was sent is settled, logged and priced: on positions, never on time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from kernel.placement import usage_log
from tollbook.inference.v1 import inference_pb2
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import pricing_pb2

_POLL_MS: Final = 100


class NotSettledError(RuntimeError):
    """Something was still under way at the deadline; says what."""


async def drained(
    inference: Any, metadata: Sequence[tuple[str, str]], timeout_s: float
) -> inference_pb2.GetConservationResponse:
    """Wait until nothing is in flight and Kafka has all of the spool."""
    end = time.monotonic() + timeout_s
    while True:
        state: inference_pb2.GetConservationResponse = await inference.GetConservation(
            inference_pb2.GetConservationRequest(),
            metadata=metadata,
            timeout=30,
            wait_for_ready=True,
        )
        if not state.in_flight and not state.spool_backlog:
            return state
        if time.monotonic() > end:
            raise NotSettledError(
                f"{state.in_flight} requests in flight and {state.spool_backlog} records unsent"
                f" after {timeout_s:.0f} s"
            )
        await asyncio.sleep(_POLL_MS / 1000)


async def broker_ends(bootstrap: str, topic: str, partitions: int) -> dict[str, int]:
    """Where each partition of the topic ends now, by the name of its log."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        ends = await consumer.end_offsets(
            [TopicPartition(topic, partition) for partition in range(partitions)]
        )
    finally:
        await consumer.stop()
    return {usage_log(place.partition): end for place, end in ends.items()}


async def logged(ledger: Any, ends: Mapping[str, int], timeout_s: float) -> dict[str, int]:
    """Wait until the ledger has read each partition to its end; gives the logs' sizes."""
    end = time.monotonic() + timeout_s
    while True:
        answer = await ledger.ListLogs(
            ledger_pb2.ListLogsRequest(), timeout=30, wait_for_ready=True
        )
        states = {state.log: state for state in answer.logs}
        behind = [
            name
            for name, offset in ends.items()
            if offset and (name not in states or states[name].next_offset < offset)
        ]
        if not behind:
            return {name: state.size for name, state in states.items()}
        if time.monotonic() > end:
            raise NotSettledError(f"{', '.join(behind)} not read to its end in {timeout_s:.0f} s")
        await asyncio.sleep(_POLL_MS / 1000)


async def counted(control: Any, timeout_s: float) -> None:
    """Wait until the engine's newest reading is in the log: its tokens are events and waste."""
    end = time.monotonic() + timeout_s
    while True:
        answer = await control.CreateCut(
            pricing_pb2.CreateCutRequest(), timeout=30, wait_for_ready=True
        )
        sums = answer.cut.conservation
        if sums.engine_tokens == sums.event_tokens + sums.waste_tokens:
            return
        if time.monotonic() > end:
            raise NotSettledError(
                f"the logs have {sums.event_tokens} tokens in events and {sums.waste_tokens} in"
                f" waste, the engine's reading says {sums.engine_tokens}, after {timeout_s:.0f} s"
            )
        await asyncio.sleep(_POLL_MS / 1000)
