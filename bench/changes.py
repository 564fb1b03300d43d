"""How fast prices change: a preview of the log's own usage, and an approval until it prices.

The preview is asked for as its users ask, through gRPC, and reads the events from
the log: first from a process that is yet to start, then again. Its baseline is
the reference that rates one event after another, on a part of the same events
in the same run. An activation is measured from the call that approves to the
answer that an event sent after it is charged by the new version; its baseline is
an event sent and charged with no change before it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from aiokafka import AIOKafkaProducer

from bench import priced_load, usage_load
from kernel import grpcs
from kernel.clock import timestamp_of
from kernel.ids import new_id
from kernel.placement import CONTROL_LOG, partition_of, usage_log
from pricing.domain.events import read_event
from pricing.domain.rating import rate_event
from tollbook.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tollbook.pricing.v1 import (
    card_records_pb2,
    cards_pb2,
    cards_pb2_grpc,
    control_pb2,
    pricing_pb2,
    pricing_pb2_grpc,
)
from tollbook.stack import Stack, running_stack
from tollbook.usage.v1 import usage_pb2

EVENTS: Final = int(os.environ.get("TOLLBOOK_BENCH_EVENTS", "1000000"))
ONE_BY_ONE: Final = 50_000
ACTIVATIONS: Final = 15
PARTS: Final = ("ledger-server", "ledger-worker", "pricing-server", "pricing-projector")
TIMEOUT_S: Final = 300
SEED: Final = 77
AUTHOR: Final = (("authorization", "Bearer author"),)
APPROVER: Final = (("authorization", "Bearer approver"),)


class Bench:
    """Clients of the stack."""

    def __init__(self, stack: Stack, ledger: Any, pricing: Any) -> None:
        environment = stack.environment()
        self.kafka = stack.address("kafka")
        self.topic = environment["TOLLBOOK_TOPIC"]
        self.partitions = int(environment["TOLLBOOK_PARTITIONS"])
        self.ledger: Any = ledger_pb2_grpc.LedgerServiceStub(ledger)
        self.pricing: Any = pricing_pb2_grpc.PricingServiceStub(pricing)
        self.cards: Any = cards_pb2_grpc.RateCardServiceStub(pricing)
        self.operators: Any = cards_pb2_grpc.OperatorServiceStub(pricing)
        self._seq = 0
        self._stream = new_id("bench")

    async def operator(self, name: str, role: int, by: Any = ()) -> None:
        made = card_records_pb2.OperatorCreated(
            operator_id=name,
            roles=[card_records_pb2.Role.ValueType(role)],
            secret_digest=hashlib.sha256(name.encode()).digest(),
        )
        request = cards_pb2.CreateOperatorRequest(operator=made)
        await self.operators.CreateOperator(request, timeout=TIMEOUT_S, metadata=by)

    async def account(self, name: str) -> None:
        record = control_pb2.ControlRecord(recorded_time=timestamp_of(0), actor="bench")
        record.account_created.account_id = name
        record.account_created.currency = "USD"
        request = ledger_pb2.AppendRequest(
            log=CONTROL_LOG,
            idempotency_key=f"account:{name}",
            payload=record.SerializeToString(),
        )
        await self.ledger.Append(request, timeout=TIMEOUT_S)

    async def propose(self, yaml: str) -> int:
        """Propose a card; gives its version."""
        request = cards_pb2.ProposeRateCardRequest(yaml=yaml)
        made = await self.cards.ProposeRateCard(request, timeout=TIMEOUT_S, metadata=AUTHOR)
        return int(made.card.version)

    async def approve(self, version: int) -> None:
        request = cards_pb2.ApproveRateCardRequest(card_id="bench", version=version)
        await self.cards.ApproveRateCard(request, timeout=TIMEOUT_S, metadata=APPROVER)

    async def sizes(self) -> dict[str, int]:
        listed = await self.ledger.ListLogs(ledger_pb2.ListLogsRequest(), timeout=TIMEOUT_S)
        return {state.log: state.size for state in listed.logs}

    async def fill(self) -> float:
        """Put the events into the log; gives events a second."""
        started = time.perf_counter()
        await usage_load.fill(self.kafka, self.topic, self.partitions, EVENTS, SEED)
        wanted = EVENTS // self.partitions
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            sizes = await self.sizes()
            names = [usage_log(number) for number in range(self.partitions)]
            if all(sizes.get(name, 0) >= wanted for name in names):
                return EVENTS / (time.perf_counter() - started)
            if time.monotonic() > deadline:
                raise AssertionError(f"the log did not take the events: {sizes}")
            await asyncio.sleep(0.1)

    async def projected(self) -> None:
        """Wait until all of it is charged, so that nothing else runs beside the preview."""
        at = [
            pricing_pb2.LogPosition(log=name, size=size)
            for name, size in (await self.sizes()).items()
            if name != "cuts"
        ]
        request = pricing_pb2.ListBalancesRequest(wait_for=at)
        for _ in range(TIMEOUT_S // 50):
            try:
                await self.pricing.ListBalances(request, timeout=50)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
            else:
                return
        raise AssertionError("the projection did not come to the end of the logs")

    async def preview(self, yaml: str) -> tuple[float, cards_pb2.PreviewRateCardResponse]:
        started = time.perf_counter()
        request = cards_pb2.PreviewRateCardRequest(yaml=yaml)
        answer = await self.cards.PreviewRateCard(request, timeout=TIMEOUT_S)
        return time.perf_counter() - started, answer

    async def event_charged(self, producer: Any) -> int:
        """Send one event and wait until it is charged; gives the version that charged it."""
        account, event_id = "account-0001", new_id("req")
        event = usage_pb2.UsageEvent(
            event_id=event_id,
            account_id=account,
            served_model="tiny-qwen",
            outcome=usage_pb2.OUTCOME_COMPLETE,
            event_time=timestamp_of(1_800_000_000_000_000),
        )
        event.quantities.add(
            unit=usage_pb2.UNIT_TOKEN, direction=usage_pb2.DIRECTION_OUT, amount=10
        )
        partition = partition_of(account, self.partitions)
        record = usage_pb2.UsageRecord(
            stream_id=self._stream, stream_seq=self._seq, usage_event=event.SerializeToString()
        )
        self._seq += 1
        await producer.send_and_wait(self.topic, record.SerializeToString(), partition=partition)
        await self.pricing.GetBalance(
            pricing_pb2.GetBalanceRequest(account_id=account, wait_for_event_id=event_id),
            timeout=TIMEOUT_S,
        )
        request = pricing_pb2.GetReceiptRequest(account_id=account, event_id=event_id)
        answer = await self.pricing.GetReceipt(request, timeout=TIMEOUT_S)
        return int(answer.receipt.lines[0].card.version)


def one_by_one(data: list[bytes]) -> float:
    """Events a second by the reference, each rated twice, as a preview does."""
    state = priced_load.opened().projection.control
    catalogue = state.catalogue(state.size)
    started = time.perf_counter()
    for position, raw in enumerate(data):
        event = read_event(position, raw)
        rate_event(event, "USD", catalogue)
        rate_event(event, "USD", catalogue)
    return len(data) / (time.perf_counter() - started)


async def _times_ms(work: Callable[[int], Awaitable[None]]) -> dict[str, float]:
    found: list[float] = []
    for number in range(ACTIVATIONS):
        started = time.perf_counter()
        await work(number)
        found.append((time.perf_counter() - started) * 1000)
    return {
        "median": round(statistics.median(found), 1),
        "max": round(max(found), 1),
        "rounds": len(found),
    }


async def _activations(bench: Bench) -> dict[str, Any]:
    producer = AIOKafkaProducer(bootstrap_servers=bench.kafka, acks="all")
    await producer.start()
    try:
        versions = [0]

        async def alone(number: int) -> None:
            await bench.event_charged(producer)

        async def changed(number: int) -> None:
            await bench.approve(versions[0])
            found = await bench.event_charged(producer)
            if found != versions[0]:
                raise AssertionError(f"charged by version {found}, approved was {versions[0]}")
            price = f"0.{number + 61}"
            versions[0] = await bench.propose(priced_load.card_yaml().replace("0.60", price))

        baseline = await _times_ms(alone)
        versions[0] = await bench.propose(priced_load.card_yaml().replace("0.60", "0.59"))
        # The proposal of the next version is a part of a round; it prices nothing.
        return {"approval_to_charge_ms": await _times_ms(changed), "charge_alone_ms": baseline}
    finally:
        await producer.stop()


async def _run(stack: Stack) -> dict[str, Any]:
    async with (
        grpcs.channel(stack.address("ledger-server")) as ledger,
        grpcs.channel(stack.address("pricing-server")) as pricing,
    ):
        bench = Bench(stack, ledger, pricing)
        await bench.operator("root", card_records_pb2.ROLE_ADMIN)
        root = (("authorization", "Bearer root"),)
        await bench.operator("author", card_records_pb2.ROLE_AUTHOR, root)
        await bench.operator("approver", card_records_pb2.ROLE_APPROVER, root)
        names = [f"account-{number:04d}" for number in range(usage_load.ACCOUNTS)]
        await asyncio.gather(*(bench.account(name) for name in names))
        await bench.approve(await bench.propose(priced_load.card_yaml()))
        filled = await bench.fill()
        await bench.projected()
        draft = priced_load.card_yaml().replace("0.60", "0.80")
        cold_s, found = await bench.preview(draft)
        warm_s = min([(await bench.preview(draft))[0] for _ in range(3)])
        if found.events != EVENTS or found.newly_unpriced or not found.losers:
            raise AssertionError("the preview did not rate all events")
        plain = await asyncio.to_thread(one_by_one, priced_load.usage_leaves(ONE_BY_ONE))
        return {
            "events": found.events,
            "log_filled_events_per_s": round(filled),
            "preview_s": round(warm_s, 2),
            "preview_first_s": round(cold_s, 2),
            "preview_events_per_s": round(found.events / warm_s),
            "one_by_one_events_per_s": round(plain),
            "of_one_by_one": round(found.events / warm_s / plain, 1),
            **await _activations(bench),
        }


def run() -> dict[str, Any]:
    """Measure on a stack of its own."""
    with running_stack(parts=PARTS) as stack:
        return asyncio.run(_run(stack))
