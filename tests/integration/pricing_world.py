"""A running stack as tests of pricing use it, and its books by plain fractions beside it.

The reference here shares no code with pricing: prices are fractions of a
currency's unit, charges are multiplied and added one by one.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from google.rpc import error_details_pb2

from kernel import grpcs
from kernel.clock import timestamp_of
from kernel.ids import new_id
from kernel.placement import CONTROL_LOG, partition_of, partition_of_log, usage_log
from pricing.domain.replay import Replay
from tollbook.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tollbook.pricing.v1 import (
    card_records_pb2,
    cards_pb2,
    cards_pb2_grpc,
    control_pb2,
    money_pb2,
    pricing_pb2,
    pricing_pb2_grpc,
)
from tollbook.stack import Stack
from tollbook.usage.v1 import usage_pb2

PARTS: Final = (
    "ledger-server",
    "ledger-worker",
    "ledger-signer",
    "pricing-server",
    "pricing-projector",
)
TIMEOUT_S: Final = 120.0
"""Longer than anything takes on a machine that is busy: what is waited for ends a wait."""
T0_US: Final = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
PICO: Final = 10**12

PRICES: Final = {"in": Fraction("0.15"), "cached": Fraction("0.075"), "out": Fraction("0.60")}
"""Of a million tokens, in dollars."""

CARD: Final = """
card: {card}
currency: USD
effective_from: 2026-01-01T00:00:00Z
multipliers:
  - {{id: batch, match: {{service_tier: batch}}, factor: 0.5}}
lines:
  - {{id: in, match: {{model: {model}, direction: in, cache_use: none}}, per: 1000000, price: 0.15}}
  - {{id: cached, match: {{model: {model}, direction: in, cache_use: read}},
      per: 1000000, price: 0.075}}
  - {{id: out, match: {{model: {model}, direction: out}}, per: 1000000, price: 0.60}}
"""

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]
"""What a call carries beside its request."""


@dataclass
class Account:
    """What an account's books must come to."""

    granted: Fraction = Fraction(0)
    charged: Fraction = Fraction(0)
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    waiting: int = 0
    events: list[str] = field(default_factory=list)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The stable reason in an error's google.rpc.ErrorInfo."""
    info = grpcs.details_of(error, error_details_pb2.ErrorInfo)
    assert info is not None, error
    assert info.domain == "tollbook"
    return str(info.reason)


class World:
    """Clients of a running stack. Use it as an async context."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.accounts: dict[str, Account] = {}
        environment = stack.environment()
        self._topic = environment["TOLLBOOK_TOPIC"]
        self._partitions = int(environment["TOLLBOOK_PARTITIONS"])
        self._boot = new_id("test")
        self._seq: dict[int, int] = {}
        self._ends: dict[int, int] = {}

    async def __aenter__(self) -> Self:
        self._ledger_channel = grpcs.channel(self.stack.address("ledger-server"))
        self._pricing_channel = grpcs.channel(self.stack.address("pricing-server"))
        self.ledger: Any = ledger_pb2_grpc.LedgerServiceStub(self._ledger_channel)
        self.pricing: Any = pricing_pb2_grpc.PricingServiceStub(self._pricing_channel)
        self.control: Any = pricing_pb2_grpc.ControlServiceStub(self._pricing_channel)
        self.cards: Any = cards_pb2_grpc.RateCardServiceStub(self._pricing_channel)
        self.operators: Any = cards_pb2_grpc.OperatorServiceStub(self._pricing_channel)
        self._kafka: Any = None
        self._connecting = asyncio.Lock()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._ledger_channel.close()
        await self._pricing_channel.close()
        await self._drop_producer()

    async def _producer(self) -> Any:
        """The one producer: a thousand that send at once would each make their own, and use up
        the files that a plain user may have open.
        """
        async with self._connecting:
            if self._kafka is None:
                made = AIOKafkaProducer(
                    bootstrap_servers=self.stack.address("kafka"),
                    acks="all",
                    request_timeout_ms=5_000,
                )
                await made.start()
                self._kafka = made
            return self._kafka

    async def _drop_producer(self) -> None:
        if self._kafka is not None:
            kafka, self._kafka = self._kafka, None
            await kafka.stop()

    # Control ----------------------------------------------------------------

    async def publish(self, yaml: str) -> pricing_pb2.PublishRateCardResponse:
        request = pricing_pb2.PublishRateCardRequest(yaml=yaml, author="a", approver="b")
        answer: pricing_pb2.PublishRateCardResponse = await self.control.PublishRateCard(
            request, timeout=TIMEOUT_S
        )
        return answer

    async def operator(self, name: str, *roles: str, by: Metadata = ()) -> Metadata:
        """Make an operator, by an admin once there is one; gives what their calls carry."""
        secret = f"secret of {name}"
        made = card_records_pb2.OperatorCreated(
            operator_id=name,
            roles=[card_records_pb2.Role.Value(f"ROLE_{role.upper()}") for role in roles],
            secret_digest=hashlib.sha256(secret.encode()).digest(),
        )
        await self.operators.CreateOperator(
            cards_pb2.CreateOperatorRequest(operator=made), timeout=TIMEOUT_S, metadata=by
        )
        return (("authorization", f"Bearer {secret}"),)

    async def change_card(self, yaml: str, author: Metadata, approver: Metadata) -> int:
        """Propose a card and approve it; gives its version."""
        proposed = await self.cards.ProposeRateCard(
            cards_pb2.ProposeRateCardRequest(yaml=yaml), timeout=TIMEOUT_S, metadata=author
        )
        await self.cards.ApproveRateCard(
            cards_pb2.ApproveRateCardRequest(
                card_id=proposed.card.card_id, version=proposed.card.version
            ),
            timeout=TIMEOUT_S,
            metadata=approver,
        )
        return int(proposed.card.version)

    async def create(self, account_id: str, currency: str = "USD") -> int:
        made = control_pb2.AccountCreated(account_id=account_id, currency=currency)
        self.accounts.setdefault(account_id, Account())
        answer = await self.control.CreateAccount(
            pricing_pb2.CreateAccountRequest(account=made), timeout=TIMEOUT_S
        )
        return int(answer.position)

    async def grant(
        self, account_id: str, amount_pico: int, grant_id: str, currency: str = "USD"
    ) -> int:
        """Grant credit; the reference is told by the caller (`granted`)."""
        made = control_pb2.CreditGranted(
            grant_id=grant_id,
            account_id=account_id,
            amount=money_pb2.Amount(currency=currency, amount_pico=str(amount_pico)),
        )
        answer = await self.control.GrantCredit(
            pricing_pb2.GrantCreditRequest(grant=made), timeout=TIMEOUT_S
        )
        return int(answer.position)

    async def open(self, *account_ids: str, amount_pico: int = 5 * PICO) -> None:
        """Accounts with credit."""
        for account_id in account_ids:
            await self.create(account_id)
            await self.grant(account_id, amount_pico, f"welcome-{account_id}")
            self.accounts[account_id].granted += amount_pico

    async def append(self, key: str, change: Mapping[str, Any]) -> int:
        """A record straight into the control log, past every check of the service."""
        record = control_pb2.ControlRecord(recorded_time=timestamp_of(T0_US), actor="x", **change)
        answer = await self.ledger.Append(
            ledger_pb2.AppendRequest(
                log=CONTROL_LOG, idempotency_key=key, payload=record.SerializeToString()
            ),
            timeout=TIMEOUT_S,
        )
        return int(answer.position)

    # Usage ------------------------------------------------------------------

    async def use(
        self,
        account_id: str,
        *,
        plain: int = 0,
        cached: int = 0,
        output: int = 0,
        undelivered: int = 0,
        model: str = "tiny",
        outcome: usage_pb2.Outcome.ValueType = usage_pb2.OUTCOME_COMPLETE,
        event_id: str = "",
        at_us: int = T0_US,
        priced: bool = True,
    ) -> str:
        """Send one event, acknowledged by the broker, and enter it into the reference."""
        account = self.accounts.setdefault(account_id, Account())
        event_id = event_id or new_id("req")
        made = usage_pb2.UsageEvent(
            event_id=event_id,
            account_id=account_id,
            served_model=model,
            outcome=outcome,
            event_time=timestamp_of(at_us),
            engine_id="engine-test",
        )
        token = usage_pb2.UNIT_TOKEN
        into, out = usage_pb2.DIRECTION_IN, usage_pb2.DIRECTION_OUT
        made.quantities.add(unit=token, direction=into, amount=plain)
        read = usage_pb2.CACHE_USE_READ
        made.quantities.add(unit=token, direction=into, cache_use=read, amount=cached)
        made.quantities.add(
            unit=token, direction=out, amount=output, undelivered_amount=undelivered
        )
        await self.send(account_id, made)
        account.events.append(event_id)
        account.requests += 1
        account.input_tokens += plain
        account.cached_tokens += cached
        account.output_tokens += output
        cost = charge(plain, cached, output, undelivered, outcome)
        if priced:
            account.charged += cost
        else:
            account.waiting += 1
        return event_id

    async def send(self, account_id: str, event: usage_pb2.UsageEvent) -> None:
        """Send an event as its producer's next record, until the broker has it."""
        partition = partition_of(account_id, self._partitions)
        seq = self._seq.get(partition, 0)
        self._seq[partition] = seq + 1
        record = usage_pb2.UsageRecord(
            stream_id=f"{self._boot}/{partition}",
            stream_seq=seq,
            usage_event=event.SerializeToString(),
        )
        await self.send_raw(partition, record.SerializeToString())

    async def send_raw(self, partition: int, value: bytes) -> None:
        """Send bytes to a partition. A send that failed may have arrived: it is sent again."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                producer = await self._producer()
                sent = await producer.send_and_wait(self._topic, value, partition=partition)
            except KafkaError:
                if time.monotonic() > deadline:
                    raise
                await self._drop_producer()
                await asyncio.sleep(0.1)
            else:
                self._ends[partition] = sent.offset + 1
                return

    # Waiting and reading ----------------------------------------------------

    async def sizes(self) -> dict[str, int]:
        """Size of every log now."""
        return {state.log: state.size for state in (await self._logs()).logs}

    async def _logs(self) -> ledger_pb2.ListLogsResponse:
        return await again(
            lambda: self.ledger.ListLogs(ledger_pb2.ListLogsRequest(), timeout=TIMEOUT_S)
        )

    async def recorded(self) -> list[pricing_pb2.LogPosition]:
        """Wait until all that was sent is in the logs; their sizes then."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            listed = await self._logs()
            states = {state.log: state for state in listed.logs}
            if all(
                usage_log(partition) in states and states[usage_log(partition)].next_offset >= end
                for partition, end in self._ends.items()
            ):
                return [
                    pricing_pb2.LogPosition(log=state.log, size=state.size)
                    for state in listed.logs
                    if state.log == CONTROL_LOG or partition_of_log(state.log) is not None
                ]
            assert time.monotonic() < deadline, f"not in the logs: {self._ends}, {states}"
            await asyncio.sleep(0.05)

    async def balance(
        self, account_id: str, wait_for: Iterable[pricing_pb2.LogPosition] = (), event_id: str = ""
    ) -> pricing_pb2.GetBalanceResponse:
        request = pricing_pb2.GetBalanceRequest(
            account_id=account_id, wait_for=wait_for, wait_for_event_id=event_id
        )
        return await again(lambda: self.pricing.GetBalance(request, timeout=TIMEOUT_S))

    async def check(self) -> None:
        """Every account of this world is exactly what the reference says, and so is the digest."""
        wait_for = await self.recorded()
        request = pricing_pb2.ListBalancesRequest(wait_for=wait_for)
        listed: pricing_pb2.ListBalancesResponse = await again(
            lambda: self.pricing.ListBalances(request, timeout=TIMEOUT_S)
        )
        found = {balance.account_id: balance for balance in listed.balances}
        for account_id, expected in self.accounts.items():
            check_balance(found[account_id], expected)
        at = {item.log: item.size for item in listed.positions}
        assert all(at.get(item.log, 0) >= item.size for item in wait_for)
        replay = await self.replay(at)
        assert replay.digest() == listed.balances_digest
        assert sum(replay.balances.values()) == 0

    async def replay(self, at: Mapping[str, int], into: Replay | None = None) -> Replay:
        """The books by a replay of the logs alone, up to these sizes; `into` are empty ones."""
        replay = into if into is not None else Replay()
        async for answer in self._read(CONTROL_LOG, at[CONTROL_LOG]):
            for position, leaf in enumerate(answer.leaves, answer.first_position):
                entry = await self.ledger.GetEntry(
                    ledger_pb2.GetEntryRequest(log=CONTROL_LOG, position=position),
                    timeout=TIMEOUT_S,
                )
                assert entry.leaf == leaf
                replay.apply_control(position, leaf, entry.aside)
        for log, size in at.items():
            if log != CONTROL_LOG:
                async for answer in self._read(log, size):
                    replay.apply_usage(
                        log, answer.first_position, answer.control_size, list(answer.leaves)
                    )
        return replay

    async def _read(self, log: str, size: int) -> AsyncIterator[ledger_pb2.ReadEventsResponse]:
        if size:
            request = ledger_pb2.ReadEventsRequest(log=log, to_position=size, max_batch=777)
            async for answer in self.ledger.ReadEvents(request, timeout=TIMEOUT_S):
                yield answer


def charge(
    plain: int,
    cached: int,
    output: int,
    undelivered: int,
    outcome: usage_pb2.Outcome.ValueType,
) -> Fraction:
    """What an event costs, in pico-dollars, by the card and the default outcome policy."""
    if outcome == usage_pb2.OUTCOME_ERROR_BEFORE_FIRST_TOKEN:
        return Fraction(0)
    if outcome in (usage_pb2.OUTCOME_ENGINE_LOST, usage_pb2.OUTCOME_ERROR_MID_STREAM):
        output -= undelivered
    dollars = (plain * PRICES["in"] + cached * PRICES["cached"] + output * PRICES["out"]) / 10**6
    return dollars * PICO


def check_balance(found: pricing_pb2.AccountBalance, expected: Account) -> None:
    """The balance is the reference's, to the last pico-unit and token."""
    assert Fraction(found.granted.amount_pico) == expected.granted
    assert Fraction(found.charged.amount_pico) == expected.charged
    assert Fraction(found.available.amount_pico) == expected.granted - expected.charged
    assert found.suspense_entries == expected.waiting
    used = found.usage
    assert (used.requests, used.input_tokens, used.cached_tokens, used.output_tokens) == (
        expected.requests,
        expected.input_tokens,
        expected.cached_tokens,
        expected.output_tokens,
    )


async def again(call: Callable[[], Awaitable[T]], timeout_s: float = TIMEOUT_S) -> T:
    """Call, and call again while a service is away, or waits for one that is.

    A change that is recorded waits for the projector no longer than some seconds, whatever its
    caller's deadline: one that is just started again may take longer.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if not _is_passing(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


def _is_passing(error: grpc.aio.AioRpcError) -> bool:
    """Whether the same call may be answered in a moment."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        info = grpcs.details_of(error, error_details_pb2.ErrorInfo)
        return info is not None and info.reason == "POSITION_NOT_REACHED"
    return error.code() is grpc.StatusCode.UNAVAILABLE
