"""Holds and balances: how quickly they are answered, and how many.

Reserve goes through gRPC to one server on the real database; the callers are
in this process, on the same machine. Every hold is released after, so that
the tables stay as they would with requests that come and go. Beside the times
stands what a hold and its release cost the server of processor time, which other
work on the machine changes less.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import psutil
import uvloop

from bench import charging
from bench.reading import cpu_s
from bench.usage_load import percentiles
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


class _Load:
    """Reserves, timed, with a release after each."""

    def __init__(self, pricing: Any, name: str, account_of: Callable[[int], str]) -> None:
        self._pricing = pricing
        self._name = name
        self._account_of = account_of
        self.times_ms: list[float] = []
        self._releases: set[asyncio.Task[None]] = set()

    async def one(self, number: int) -> None:
        account_id = self._account_of(number)
        began = time.perf_counter()
        answer = await self._pricing.Reserve(
            holds_pb2.ReserveRequest(
                account_id=account_id,
                event_id=f"{self._name}-{number}",
                amount=_usd(10**6),
                ttl_ms=60_000,
            ),
            timeout=TIMEOUT_S,
        )
        self.times_ms.append((time.perf_counter() - began) * 1000)
        task = asyncio.create_task(self._release(account_id, answer.hold.hold_id))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _release(self, account_id: str, hold_id: str) -> None:
        await self._pricing.Release(
            holds_pb2.ReleaseRequest(account_id=account_id, hold_id=hold_id), timeout=TIMEOUT_S
        )

    async def at_rate(self, rate: int, seconds: int) -> None:
        """So many a second, each begun at its own instant whatever became of the others."""
        begin = time.perf_counter()
        tasks = []
        for number in range(rate * seconds):
            wait_s = begin + number / rate - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.append(asyncio.create_task(self.one(number)))
        await asyncio.gather(*tasks)
        await asyncio.gather(*self._releases)

    async def flat_out(self, callers: int, seconds: int) -> float:
        """As many as there are answers for; gives the rate."""
        begin = time.perf_counter()
        numbers = iter(range(10**9))

        async def caller() -> None:
            while time.perf_counter() - begin < seconds:
                await self.one(next(numbers))

        await asyncio.gather(*(caller() for _ in range(callers)))
        rate = len(self.times_ms) / (time.perf_counter() - begin)
        await asyncio.gather(*self._releases)
        return rate


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
    for name, account_of in spreads.items():
        warm = _Load(pricing, f"warm-{name}", account_of)
        await warm.at_rate(200, 1)
        load = _Load(pricing, f"rate-{name}", account_of)
        await load.at_rate(RATE, SECONDS)
        most = _Load(pricing, f"most-{name}", account_of)
        before_s = cpu_s([server])
        highest = await most.flat_out(CALLERS, SECONDS)
        spent_s = cpu_s([server]) - before_s
        figures[f"reserve_{name}"] = {
            "offered_per_s": RATE,
            "ms": percentiles(load.times_ms),
            "highest_per_s": round(highest),
            "server_cpu_us_each": round(spent_s / len(most.times_ms) * 1e6),
        }
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
    return {"accounts": ACCOUNTS, "seconds": SECONDS, **figures, "charging": charging.run()}
