"""Holds and balances: how quickly they are answered, and how many.

Reserve goes through gRPC to one server on the real database, by calls of their
own and on one stream, as inference asks; the callers are in this process, on
the same machine. A time is counted from the instant at which the ask was to be
made, so that a caller that is late itself hides nothing; how late that was stands
beside. Every hold is released after, so that the tables stay as they would with
requests that come and go. Beside the times stands what a hold and its release
cost the server of processor time, which other work on the machine changes less.

TOLLBOOK_HOLDS_ALONE=1 measures these and not the way from topic to balance.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, Final

import psutil
import uvloop

from bench import charging
from bench.reading import cpu_s
from bench.usage_load import percentiles
from inference.adapters.hold_asks import HoldAsks
from kernel import cycles, grpcs, telemetry
from tollbook.pricing.v1 import (
    accounts_pb2,
    control_pb2,
    holds_pb2,
    money_pb2,
    pricing_pb2,
    pricing_pb2_grpc,
)
from tollbook.stack import Stack, running_stack

PARTS: Final = ("ledger-server", "ledger-worker", "pricing-server", "pricing-projector")
RATE: Final = 1_000
SECONDS: Final = 8
ACCOUNTS: Final = 1_000
CALLERS: Final = 64
TIMEOUT_S: Final = 60.0
TIMEOUT_MS: Final = 60_000


def _usd(amount_pico: int) -> money_pb2.Amount:
    return money_pb2.Amount(currency="USD", amount_pico=str(amount_pico))


async def _open(control: Any, account_id: str) -> None:
    await control.CreateAccount(
        pricing_pb2.CreateAccountRequest(
            account=control_pb2.AccountCreated(account_id=account_id, currency="USD")
        ),
        timeout=TIMEOUT_S,
    )
    await control.GrantCredit(
        pricing_pb2.GrantCreditRequest(
            grant=control_pb2.CreditGranted(
                grant_id=f"bench-{account_id}", account_id=account_id, amount=_usd(10**20)
            )
        ),
        timeout=TIMEOUT_S,
    )


async def _limit(control: Any, account_id: str) -> None:
    """A limit that is never in the way: it is looked at all the same."""
    limit = accounts_pb2.LimitSet(
        change_id=f"bench-{account_id}",
        limit_id=f"bench-{account_id}",
        account_id=account_id,
        window=accounts_pb2.SPEND_WINDOW_MONTH,
        time_zone="Europe/Berlin",
        amount=_usd(10**20),
    )
    await control.SetLimit(pricing_pb2.SetLimitRequest(limit=limit), timeout=TIMEOUT_S)


class _Calls:
    """Each ask by a call of its own."""

    def __init__(self, pricing: Any) -> None:
        self._pricing = pricing

    async def reserve(self, request: holds_pb2.ReserveRequest, timeout_ms: int) -> Any:
        return await self._pricing.Reserve(request, timeout=timeout_ms / 1000)

    async def release(self, request: holds_pb2.ReleaseRequest, timeout_ms: int) -> Any:
        return await self._pricing.Release(request, timeout=timeout_ms / 1000)


class _Load:
    """Reserves, timed, with a release after each."""

    def __init__(
        self, asks: _Calls | HoldAsks, name: str, account_of: Callable[[int], str]
    ) -> None:
        self._asks = asks
        self._name = name
        self._account_of = account_of
        self.times_ms: list[float] = []
        self.late_ms: list[float] = []
        self._releases: set[asyncio.Task[None]] = set()

    async def one(self, number: int, began: float) -> None:
        self.late_ms.append((time.perf_counter() - began) * 1000)
        account_id = self._account_of(number)
        answer = await self._asks.reserve(
            holds_pb2.ReserveRequest(
                account_id=account_id,
                event_id=f"{self._name}-{number}",
                amount=_usd(10**6),
                ttl_ms=60_000,
            ),
            TIMEOUT_MS,
        )
        self.times_ms.append((time.perf_counter() - began) * 1000)
        task = asyncio.create_task(self._release(account_id, answer.hold.hold_id))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _release(self, account_id: str, hold_id: str) -> None:
        await self._asks.release(
            holds_pb2.ReleaseRequest(account_id=account_id, hold_id=hold_id), TIMEOUT_MS
        )

    async def at_rate(self, rate: int, seconds: int) -> None:
        """So many a second, each begun at its own instant whatever became of the others."""
        begin = time.perf_counter()
        tasks = []
        for number in range(rate * seconds):
            due = begin + number / rate
            wait_s = due - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.append(asyncio.create_task(self.one(number, due)))
        await asyncio.gather(*tasks)
        await asyncio.gather(*self._releases)

    async def flat_out(self, callers: int, seconds: int) -> float:
        """As many as there are answers for; gives the rate."""
        begin = time.perf_counter()
        numbers = iter(range(10**9))

        async def caller() -> None:
            while time.perf_counter() - begin < seconds:
                await self.one(next(numbers), time.perf_counter())

        await asyncio.gather(*(caller() for _ in range(callers)))
        rate = len(self.times_ms) / (time.perf_counter() - begin)
        await asyncio.gather(*self._releases)
        return rate


async def _reserves(
    asks: _Calls | HoldAsks,
    name: str,
    account_of: Callable[[int], str],
    server: psutil.Process,
    own: psutil.Process,
) -> dict[str, Any]:
    """One way of asking, for one spread of accounts."""
    warm = _Load(asks, f"warm-{name}", account_of)
    await warm.at_rate(200, 1)
    load = _Load(asks, f"rate-{name}", account_of)
    at_rate_s = [cpu_s([server]), cpu_s([own])]
    await load.at_rate(RATE, SECONDS)
    at_rate_s = [cpu_s([server]) - at_rate_s[0], cpu_s([own]) - at_rate_s[1]]
    most = _Load(asks, f"most-{name}", account_of)
    before_s = cpu_s([server])
    highest = await most.flat_out(CALLERS, SECONDS)
    spent_s = cpu_s([server]) - before_s
    return {
        "offered_per_s": RATE,
        "ms": percentiles(load.times_ms),
        "of_that_callers_late_ms": percentiles(load.late_ms),
        "server_cpu_share": round(at_rate_s[0] / SECONDS, 2),
        "callers_cpu_share": round(at_rate_s[1] / SECONDS, 2),
        "highest_per_s": round(highest),
        "server_cpu_us_each": round(spent_s / len(most.times_ms) * 1e6),
    }


async def _measure(stack: Stack) -> dict[str, Any]:
    channel = grpcs.channel(stack.address("pricing-server"))
    server = psutil.Process(stack.process("pricing-server").pid)
    pricing: Any = pricing_pb2_grpc.PricingServiceStub(channel)
    control: Any = pricing_pb2_grpc.ControlServiceStub(channel)
    names = [f"bench-{number}" for number in range(ACCOUNTS)]
    for start in range(0, ACCOUNTS, 50):
        await asyncio.gather(*(_open(control, name) for name in names[start : start + 50]))
    figures: dict[str, Any] = {}
    await _limit(control, names[-1])
    spreads: dict[str, Callable[[int], str]] = {
        "one_account": lambda _: names[0],
        "many_accounts": lambda number: names[number % (ACCOUNTS - 1)],
        "one_limited_account": lambda _: names[-1],
    }
    own = psutil.Process()
    stream = HoldAsks(channel)
    ways: dict[str, _Calls | HoldAsks] = {"stream": stream, "calls": _Calls(pricing)}
    for name, account_of in spreads.items():
        figures[f"reserve_{name}"] = {
            way: await _reserves(asks, f"{way}-{name}", account_of, server, own)
            for way, asks in ways.items()
        }
    await stream.close()
    balance_ms = []
    for number in range(2_000):
        began = time.perf_counter()
        await pricing.GetBalance(
            pricing_pb2.GetBalanceRequest(account_id=names[number % ACCOUNTS]), timeout=TIMEOUT_S
        )
        balance_ms.append((time.perf_counter() - began) * 1000)
    figures["get_balance_ms"] = percentiles(balance_ms)
    await channel.close()
    return figures


def run() -> dict[str, Any]:
    """Measure; gives figures for JSON."""
    telemetry.configure("bench", "WARNING")
    with running_stack(parts=PARTS) as stack:
        # The callers share the processors with what they call: they take as little as may be.
        cycles.settle()
        figures = uvloop.run(_measure(stack))
    figures = {"accounts": ACCOUNTS, "seconds": SECONDS, **figures}
    if not os.environ.get("TOLLBOOK_HOLDS_ALONE"):
        figures["charging"] = charging.run()
    return figures
