"""Holds under everything at once: several doors on one real database, a projector that charges,
grants, and connections that die at any moment. No account goes below its limit or over one of its
spend limits, nothing stays held.

TOLLBOOK_HOLD_OPERATIONS=100000 is the long form.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any, Final

import asyncpg
import pytest
from tests.integration.pricing_books import Books, hold_doors
from tests.unit.pricing import builders as make

from kernel import errors
from kernel.clock import SystemClock
from pricing.adapters.hold_ops import Reserving
from pricing.adapters.holds import HoldDoor
from pricing.domain.holds import Ask, hold_id_of
from tollbook.pricing.v1 import accounts_pb2
from tollbook.stack import Stack

pytestmark = [pytest.mark.chaos, pytest.mark.integration]

OPERATIONS: Final = int(os.environ.get("TOLLBOOK_HOLD_OPERATIONS", "2000"))
DOORS: Final = 3
CALLERS: Final = 48
ACCOUNTS: Final = ("hot", "warm", "cool", "cold")
TOKEN_PICO: Final = 600_000
PIN: Final = 1 + len(ACCOUNTS)
SHORT_US: Final = 300_000
LONG_US: Final = 3_600_000_000

_AUDIT: Final = """
SELECT a.account_id, coalesce(b.amount_pico, 0) AS balance,
       coalesce(r.amount_pico, 0) - coalesce(s.amount_pico, 0) AS held,
       (SELECT coalesce(sum(amount_pico), 0) FROM hold h WHERE h.account_id = a.account_id) AS holds
FROM account a
LEFT JOIN balance b ON b.ledger_account = 'account:' || a.account_id
LEFT JOIN account_reserved r ON r.account_id = a.account_id
LEFT JOIN account_settled s ON s.account_id = a.account_id
"""
# Of limits that count for ever: what is charged and held, and may be.
_LIMITS: Final = """
SELECT l.limit_id, l.amount_pico AS most,
       (SELECT coalesce(sum(s.amount_pico), 0) FROM limit_spent s WHERE s.limit_id = l.limit_id)
       + (SELECT coalesce(sum(h.amount_pico), 0) FROM hold h WHERE h.account_id = l.account_id)
       AS used
FROM spend_limit l WHERE l.span = 'ever'
"""


class Walk:
    """The operations, their dice, and what must hold whenever one looks."""

    def __init__(self, seed: int, doors: list[HoldDoor], books: Books) -> None:
        self._dice = random.Random(seed)
        self._doors = doors
        self._books = books
        self._mine: dict[str, tuple[str, int]] = {}
        self._count = 0
        self.admitted = 0
        self.refused = 0
        self.retried = 0

    async def caller(self) -> None:
        # However quick the machine is, some of it is to be met by a connection that dies.
        while self._count < (OPERATIONS if self.retried else 20 * OPERATIONS):
            self._count += 1
            await self._one(self._count)

    async def _one(self, number: int) -> None:
        dice = self._dice
        what = dice.random()
        if what < 0.5 or not self._mine:
            await self._reserve(number)
        elif what < 0.55:
            account_id = dice.choice(ACCOUNTS)
            await self._books.grant(account_id, dice.randint(1, 40) * TOKEN_PICO)
        else:
            event_id = dice.choice(sorted(self._mine))
            account_id, tokens = self._mine.pop(event_id)
            hold_id = hold_id_of(account_id, event_id)
            if what < 0.7:
                await self._again(lambda door: door.release(account_id, hold_id))
            elif what < 0.8:
                await self._extend(account_id, event_id, tokens + dice.randint(0, 20))
            else:
                await self._books.charge(account_id, event_id, dice.randint(0, tokens))

    async def _reserve(self, number: int) -> None:
        dice = self._dice
        account_id = dice.choice((*ACCOUNTS, "hot", "hot", "hot"))
        event_id, tokens = f"event-{number}", dice.randint(1, 60)
        # An orphan is a hold that nobody settles: it ends by itself. The others live long enough
        # to be charged, since a charge without its hold is no business of this walk.
        orphan = dice.random() < 0.2
        ttl_us = SHORT_US if orphan else LONG_US
        if await self._ask(account_id, event_id, tokens, ttl_us) and not orphan:
            self._mine[event_id] = account_id, tokens

    async def _extend(self, account_id: str, event_id: str, tokens: int) -> None:
        granted = await self._ask(account_id, event_id, tokens, LONG_US)
        if granted:
            self._mine[event_id] = account_id, tokens
        else:
            hold_id = hold_id_of(account_id, event_id)
            await self._again(lambda door: door.release(account_id, hold_id))

    async def _ask(self, account_id: str, event_id: str, tokens: int, ttl_us: int) -> bool:
        ask = Ask(
            hold_id_of(account_id, event_id),
            account_id,
            "",
            "",
            tokens * TOKEN_PICO,
            SystemClock().now_us(),
        )
        try:
            await self._again(lambda door: door.reserve(Reserving(ask, "USD", ttl_us)))
        except errors.QuotaExceeded:
            self.refused += 1
            return False
        self.admitted += 1
        return True

    async def _again(self, call: Any) -> Any:
        """Ask a door, and another one when it could not tell."""
        while True:
            try:
                return await call(self._dice.choice(self._doors))
            except errors.Unavailable:
                self.retried += 1
                await asyncio.sleep(0.005)


async def audit(db: Any) -> None:
    """One look: nobody is below 0, and what is kept is what the open holds keep."""
    for row in await db.fetch(_AUDIT):
        assert row["balance"] - row["held"] >= 0, f"overshoot: {dict(row)}"
        assert row["held"] == row["holds"], f"leak: {dict(row)}"
    for row in await db.fetch(_LIMITS):
        assert row["used"] <= row["most"], f"over a limit: {dict(row)}"


async def crash(admin: Any, dice: random.Random) -> None:
    """Cut a connection in whatever it is doing, again and again."""
    while True:
        await asyncio.sleep(dice.random() * 0.2)
        pids = await admin.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'tollbook-pricing'"
        )
        if pids:
            await admin.fetchval("SELECT pg_terminate_backend($1)", dice.choice(pids)["pid"])


@pytest.mark.timeout(3600)
async def test_nothing_overshoots_and_nothing_leaks(pricing_tables: Stack) -> None:
    environment = pricing_tables.environment()
    dsn = environment["TOLLBOOK_PRICING_POSTGRES"]
    admin = await asyncpg.connect(environment["TOLLBOOK_POSTGRES"])
    seed = int(os.environ.get("TOLLBOOK_SEED", random.randrange(2**32)))
    dice = random.Random(seed)
    try:
        books = await Books.opened(admin, dsn, ACCOUNTS)
        for account_id in ACCOUNTS:
            await books.grant(account_id, 300 * TOKEN_PICO)
        # By these an account is decided with its windows.
        for account_id, window, tokens in (
            ("hot", accounts_pb2.SPEND_WINDOW_MONTH, 10**9),
            ("warm", accounts_pb2.SPEND_WINDOW_EVER, 250),
        ):
            made_limit = make.limit(
                account_id, window, tokens * TOKEN_PICO, time_zone="Europe/Berlin"
            )
            await books.change(limit_set=made_limit)
        async with hold_doors(dsn, DOORS) as made:
            walk = Walk(seed, made, books)
            crashing = asyncio.ensure_future(crash(admin, dice))
            callers = [asyncio.ensure_future(walk.caller()) for _ in range(CALLERS)]
            looking = await asyncpg.connect(environment["TOLLBOOK_POSTGRES"])
            await looking.execute("SET search_path = pricing")
            while not all(caller.done() for caller in callers):
                await audit(looking)
                await asyncio.wait(callers, timeout=0.05)
            crashing.cancel()
            await asyncio.gather(*callers)
            await asyncio.gather(crashing, return_exceptions=True)
            # What is still somebody's is given up; orphans end by themselves.
            for event_id, (account_id, _) in walk._mine.items():
                hold_id = hold_id_of(account_id, event_id)
                await walk._again(lambda door, a=account_id, h=hold_id: door.release(a, h))
            async with asyncio.timeout(60):
                while await looking.fetchval("SELECT count(*) FROM hold"):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await audit(looking)
            held = await looking.fetch(_AUDIT)
            assert all(row["held"] == 0 for row in held), held
            await looking.close()
        # The walk met what it is about.
        assert walk.refused > OPERATIONS // 100, f"seed {seed}"
        assert walk.admitted > OPERATIONS // 10, f"seed {seed}"
        assert walk.retried, f"seed {seed}: no crash was met"
    except AssertionError as error:
        error.add_note(f"TOLLBOOK_SEED={seed}")
        raise
    finally:
        await admin.close()
