"""Batches of holds on the real tables: the database decides as the domain does, asks of one hold
go one by one, and a server that stands still keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import asyncpg
import pytest
from tests.integration.pricing_books import Books, running
from tests.unit.pricing import builders as make

from kernel import errors
from kernel.placement import partition_of
from pricing.adapters import database, hold_batch, hold_closer, hold_ops, hold_sql
from pricing.adapters.hold_ops import Answer, Made, Op, Releasing, Reserving
from pricing.adapters.hold_windows import Windows
from pricing.adapters.holds import HoldDoor
from pricing.domain.holds import Ask, Standing, hold_id_of
from tollbook.pricing.v1 import accounts_pb2
from tollbook.stack import Stack

pytestmark = pytest.mark.integration

TOKEN_PICO = 600_000
LONG_US = 3_600_000_000
ACCOUNTS = ("acme", "birch", "cedar")
BATCHES = 60


@dataclass
class Desk:
    """Books, and connections as a door uses them."""

    books: Books
    pool: Any
    dsn: str
    admin: Any


@pytest.fixture
async def desk(pricing_tables: Stack) -> AsyncIterator[Desk]:
    environment = pricing_tables.environment()
    dsn = environment["TOLLBOOK_PRICING_POSTGRES"]
    admin = await asyncpg.connect(environment["TOLLBOOK_POSTGRES"])
    books = await Books.opened(admin, dsn, ACCOUNTS)
    pool = await database.open_pool(dsn, 4, asyncio.Event())
    try:
        yield Desk(books, pool, dsn, admin)
    finally:
        pool.terminate()
        await admin.close()


def reserving(account_id: str, event_id: str, tokens: int, **more: Any) -> Reserving:
    ask = Ask(hold_id_of(account_id, event_id), account_id, "", "", tokens * TOKEN_PICO, make.T0_US)
    return Reserving(ask, **{"currency": "USD", "ttl_us": LONG_US, **more})


async def limit(
    desk: Desk, account_id: str, name: str, tokens: int, window: int, **more: Any
) -> None:
    """A limit of so many tokens' price in each window."""
    limit_id = f"{account_id}-{name}"
    made = make.limit(account_id, cast(Any, window), tokens * TOKEN_PICO, limit_id, **more)
    await desk.books.change(limit_set=made)


@dataclass
class Model:
    """Accounts and open holds, as plain numbers."""

    balance: dict[str, int]
    open: dict[str, tuple[str, int]] = field(default_factory=dict)
    charged: set[str] = field(default_factory=set)

    def free(self, account_id: str) -> int:
        held = sum(pico for owner, pico in self.open.values() if owner == account_id)
        return self.balance[account_id] - held

    def answers(self, op: Op) -> object:
        """What an ask gets: the hold's amount and what is free after it, or why not."""
        if isinstance(op, Releasing):
            if self.open.get(op.hold_id, ("",))[0] != op.account_id:
                return False
            del self.open[op.hold_id]
            return True
        account_id, older = op.ask.account_id, self.open.get(op.hold_id)
        if account_id not in self.balance:
            return "ACCOUNT_NOT_FOUND"
        if op.currency != "USD":
            return "CURRENCY_MISMATCH"
        if older is None and op.grows:
            return "HOLD_NOT_FOUND"
        if older is None and op.hold_id in self.charged:
            return "EVENT_CHARGED"
        before = older[1] if older else 0
        amount = max(before, op.ask.amount_pico)
        more = amount - before
        if more and more > self.free(account_id):
            return "NO_CREDIT"
        self.open[op.hold_id] = account_id, amount
        return amount, self.free(account_id)


def seen(answer: Answer) -> object:
    if isinstance(answer, Made):
        return answer.hold.amount_pico, answer.spendable_pico
    return answer.reason if isinstance(answer, errors.TollbookError) else answer


def some_ops(dice: random.Random, charged: list[str]) -> list[Op]:
    """Asks of every kind, no hold twice."""
    ops: list[Op] = []
    for event_id in dice.sample([f"e{number}" for number in range(40)], dice.randint(1, 12)):
        account_id = dice.choice((*ACCOUNTS, "acme", "acme", "nobody"))
        tokens = dice.choice((0, 1, 5, 20, 60))
        what = dice.random()
        if what < 0.25:
            ops.append(Releasing(account_id, hold_id_of(account_id, event_id)))
        elif what < 0.4:
            ops.append(reserving(account_id, event_id, tokens, grows=True))
        elif what < 0.45:
            ops.append(reserving(account_id, event_id, tokens, currency="EUR"))
        elif what < 0.5 and charged:
            ops.append(reserving("acme", dice.choice(charged), tokens))
        else:
            ops.append(reserving(account_id, event_id, tokens))
    return ops


async def decided(
    db: Any, batch: list[Op], windows: Windows | None = None
) -> tuple[list[tuple[Op, Answer]], int]:
    """What a batch is answered, and how many of it took a closer look: those are the last ones."""
    windows = windows or Windows()
    answers, closer = await hold_batch.decide(db, batch, windows)
    for op in closer:
        answers += await hold_closer.decide(db, op.shard, [op], windows)
    return answers, len(closer)


@pytest.mark.parametrize("limited", [False, True], ids=["plain accounts", "accounts with limits"])
async def test_the_database_and_the_domain_decide_as_plain_numbers_do(
    desk: Desk, limited: bool
) -> None:
    dice = random.Random(7)
    model = Model(dict.fromkeys(ACCOUNTS, 100 * TOKEN_PICO))
    for account_id in ACCOUNTS:
        await desk.books.grant(account_id, 100 * TOKEN_PICO)
        if limited:
            # One that is never in the way: the account is decided as one without.
            await limit(desk, account_id, "day", 10**14, accounts_pb2.SPEND_WINDOW_DAY)
    charged: list[str] = []
    met: set[object] = set()
    looked = reserved = 0
    windows = Windows()
    async with desk.pool.acquire() as db:
        for number in range(BATCHES):
            batch = some_ops(dice, charged)
            batch = list({op.hold_id: op for op in batch}.values())
            answers, closer = await decided(db, batch, windows)
            looked += closer
            reserved += sum(isinstance(op, Reserving) for op in batch)
            found = {op: seen(answer) for op, answer in answers}
            # What is given up first, then account by account.
            for op in sorted(
                batch,
                key=lambda op: ("", 0) if isinstance(op, Releasing) else (op.ask.account_id, 1),
            ):
                expected = model.answers(op)
                assert found[op] == expected, (number, op)
                met.add(expected if isinstance(expected, (str, bool)) else "made")
            if number % 10 == 5:
                event_id = f"charged-{number}"
                await desk.books.charge("acme", event_id, 1)
                charged.append(event_id)
                model.balance["acme"] -= TOKEN_PICO
                model.charged.add(hold_id_of("acme", event_id))
    assert met == {
        "made",
        True,
        False,
        "NO_CREDIT",
        "ACCOUNT_NOT_FOUND",
        "CURRENCY_MISMATCH",
        "HOLD_NOT_FOUND",
        "EVENT_CHARGED",
    }
    # With limits, one look closer tells what windows to ask for, and who is refused is looked at.
    assert bool(looked) == limited
    assert looked < reserved / 2
    held = await desk.admin.fetch(
        "SELECT r.account_id, r.amount_pico, (SELECT coalesce(sum(amount_pico), 0) FROM hold h"
        " WHERE h.account_id = r.account_id) AS holds FROM account_reserved r"
    )
    for row in held:
        assert row["amount_pico"] == row["holds"]
        assert model.balance[row["account_id"]] - row["holds"] == model.free(row["account_id"])


SECOND_US = 1_000_000
# About a minute's edge, and about a month's in Berlin, which is an hour before it is one in UTC.
TIMES_US = (
    make.T0_US,
    make.T0_US + 30 * SECOND_US,
    make.T0_US + 60 * SECOND_US - 1,
    make.T0_US + 60 * SECOND_US,
    make.T0_US - 3_600 * SECOND_US,
    make.T0_US - 3_600 * SECOND_US - 1,
)


def like(op: Op, account_id: str) -> Op:
    """The same ask of another account."""
    event_id = op.hold_id
    if isinstance(op, Releasing):
        return Releasing(account_id, hold_id_of(account_id, event_id))
    ask = op.ask._replace(hold_id=hold_id_of(account_id, event_id), account_id=account_id)
    return Reserving(ask, op.currency, op.ttl_us, op.grows)


def asked_of_limits(dice: random.Random) -> list[Op]:
    """Asks for projects and keys, of events about the edges of windows, of nobody yet: what stands
    for the hold is the event's id, and like() makes them an account's.
    """
    ops: list[Op] = []
    for number in dice.sample(range(60), dice.randint(1, 10)):
        if dice.random() < 0.3:
            ops.append(Releasing("", f"e{number}"))
            continue
        tokens = dice.choice((0, 1, 2, 5, 8))
        project_id, key_id = dice.choice(("", "p", "q")), dice.choice(("", "k"))
        grows = dice.random() < 0.2
        # Of one that grows a guess, right or wrong.
        at_us = dice.choice(TIMES_US)
        ask = Ask(f"e{number}", "", project_id, key_id, tokens * TOKEN_PICO, at_us)
        ops.append(Reserving(ask, "", LONG_US, grows))
    return ops


def spoken(answer: Answer, account_id: str) -> object:
    """An answer and all of its words, without the account's name."""
    if isinstance(answer, errors.QuotaExceeded):
        found = [(one.subject, one.description) for one in answer.violations]
        return [(subject.replace(account_id, "it"), said) for subject, said in found]
    return seen(answer)


async def test_limits_are_decided_alike_in_one_statement_and_by_the_domain(desk: Desk) -> None:
    dice = random.Random(11)
    for account_id in ("acme", "birch"):
        await desk.books.grant(account_id, 400 * TOKEN_PICO)
        await limit(desk, account_id, "minute", 9, accounts_pb2.SPEND_WINDOW_MINUTE)
        await limit(
            desk, account_id, "p", 40, accounts_pb2.SPEND_WINDOW_DAY, project_id="p", key_id="k"
        )
        month = accounts_pb2.SPEND_WINDOW_MONTH
        await limit(desk, account_id, "month", 60, month, time_zone="Europe/Berlin")
    windows = Windows()
    in_one = looked = 0
    met: set[object] = set()
    async with desk.pool.acquire() as db:
        for number in range(2 * BATCHES):
            twins = {like(op, "acme"): like(op, "birch") for op in asked_of_limits(dice)}
            if number == BATCHES:
                # A kind of window that nobody knows of yet.
                for account_id in ("acme", "birch"):
                    await limit(desk, account_id, "hour", 12, accounts_pb2.SPEND_WINDOW_HOUR)
            answers, closer = await decided(db, list(twins), windows)
            looked += closer
            in_one += sum(
                isinstance(op, Reserving) and isinstance(answer, Made) and op.ask.amount_pico > 0
                for op, answer in answers[: len(answers) - closer]
            )
            # Their twins in the order in which they were decided: what is given up went first.
            for op, answer in sorted(answers, key=lambda one: not isinstance(one[0], Releasing)):
                twin = twins[op]
                if isinstance(twin, Reserving):
                    [(_, expected)] = await hold_closer.decide(db, twin.shard, [twin], Windows())
                else:
                    [(_, expected)] = (await decided(db, [twin]))[0]
                assert spoken(answer, "acme") == spoken(expected, "birch"), (number, op)
                met.add(seen(answer) if isinstance(seen(answer), str) else "made")
            if number % 5 == 4:
                at_us = dice.choice(TIMES_US)
                for account_id in ("acme", "birch"):
                    tagged = {"project_id": "p", "key_id": "k"}
                    await desk.books.charge(account_id, f"c{number}", 1, at_us, **tagged)
    assert {"made", "SPEND_LIMIT", "HOLD_NOT_FOUND"} <= met
    assert in_one > BATCHES / 2


async def test_a_hold_of_a_limited_account_grows_in_one_statement(desk: Desk) -> None:
    await desk.books.grant("acme", 100 * TOKEN_PICO)
    await limit(desk, "acme", "day", 50, accounts_pb2.SPEND_WINDOW_DAY)
    windows = Windows()

    def growing(tokens: int, at_us: int) -> Reserving:
        hold_id = hold_id_of("acme", "one")
        ask = Ask(hold_id, "acme", "", "", tokens * TOKEN_PICO, at_us)
        return Reserving(ask, "USD", LONG_US, grows=True)

    async with desk.pool.acquire() as db:
        # The first look tells what windows there are.
        assert (await decided(db, [reserving("acme", "one", 10)], windows))[1] == 1
        (_, grown), closer = await grown_by(db, growing(20, make.T0_US + SECOND_US), windows)
        assert (closer, seen(grown)) == (0, (20 * TOKEN_PICO, 80 * TOKEN_PICO))
        # A wrong guess costs a look, and no more; so does a limit that is in the way.
        (_, grown), closer = await grown_by(db, growing(30, make.T0_US - SECOND_US), windows)
        assert (closer, seen(grown)) == (1, (30 * TOKEN_PICO, 70 * TOKEN_PICO))
        (_, grown), closer = await grown_by(db, growing(51, make.T0_US), windows)
        assert (closer, seen(grown)) == (1, "SPEND_LIMIT")


async def grown_by(db: Any, op: Reserving, windows: Windows) -> tuple[tuple[Op, Answer], int]:
    """A hold's answer, and how many closer looks it took."""
    answers, closer = await decided(db, [op], windows)
    return answers[0], closer


async def test_nobody_is_refused_for_a_hold_whose_time_is_over(desk: Desk) -> None:
    await desk.books.grant("acme", 10 * TOKEN_PICO)
    async with desk.pool.acquire() as db:
        await decided(db, [reserving("acme", "old", 6, ttl_us=1), reserving("acme", "kept", 3)])
        batch: list[Op] = [
            # Asked again after its time, it is a new one.
            reserving("acme", "old", 1, ttl_us=1),
            reserving("acme", "new", 7),
            reserving("acme", "much", 1),
        ]
        answers, _ = await decided(db, batch)
        assert {op.hold_id: seen(answer) for op, answer in answers} == {
            hold_id_of("acme", "old"): (TOKEN_PICO, 6 * TOKEN_PICO),
            # 6 were free: the repeat is not over yet when its batch is decided.
            hold_id_of("acme", "new"): "NO_CREDIT",
            hold_id_of("acme", "much"): (TOKEN_PICO, 5 * TOKEN_PICO),
        }
        answers, _ = await decided(db, [reserving("acme", "new", 6)])
        assert seen(answers[0][1]) == (6 * TOKEN_PICO, 0)
    assert await desk.admin.fetchval("SELECT count(*) FROM hold") == 3


async def test_asks_of_one_hold_go_one_by_one(desk: Desk) -> None:
    await desk.books.grant("acme", 10 * TOKEN_PICO)
    async with running(HoldDoor(desk.pool)) as door:
        asks = [door.reserve(reserving("acme", "one", 8)) for _ in range(40)]
        same = await asyncio.gather(*asks)
        assert {made.hold for made in same} == {same[0].hold}
        hold_id = same[0].hold.hold_id
        # In the order in which they came, whatever they do: the last one decides.
        several = [
            door.release("acme", hold_id),
            door.reserve(reserving("acme", "one", 10)),
            door.reserve(reserving("acme", "one", 0, grows=True)),
            door.release("acme", hold_id),
            door.release("acme", hold_id),
        ]
        gone, again, longer, given_up, nothing = await asyncio.gather(*several)
        assert (gone, given_up, nothing) == (True, True, False)
        assert isinstance(again, Made)
        assert isinstance(longer, Made)
        assert again.hold.amount_pico == longer.hold.amount_pico == 10 * TOKEN_PICO
        # Whoever goes away before its turn leaves nothing behind.
        leaving = asyncio.ensure_future(door.reserve(reserving("acme", "left", 1)))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (await door.reserve(reserving("acme", "whole", 10))).spendable_pico == 0


async def test_a_server_that_stands_still_keeps_nobody_waiting(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.books.grant("acme", 10 * TOKEN_PICO)
    still = await database.connect(desk.dsn)
    # Of that one alone: the door itself may be paused for longer.
    with monkeypatch.context() as patch:
        patch.setattr(hold_sql, "IDLE_MS", 200)
        await hold_sql.lock(still, partition_of("acme", hold_sql.SHARDS))
    async with running(HoldDoor(desk.pool)) as door:
        async with asyncio.timeout(120):
            # It does not go on; the database ends its transaction, and the other one has its turn.
            made = await door.reserve(reserving("acme", "one", 1))
            assert made.hold.amount_pico == TOKEN_PICO
            with pytest.raises(database.AWAY):
                await hold_sql.make(still, 0, [made.hold])
            still.terminate()


async def test_the_domain_confirms_what_the_database_refuses() -> None:
    row = {"outcome": "NO_CREDIT", "currency": "USD", "free_pico": "5", "amount_pico": "5"}
    with pytest.raises(AssertionError, match="do not agree"):
        hold_batch._answer(reserving("acme", "one", 1), row)
    ask = reserving("acme", "one", 1).ask
    assert hold_ops.refused(Standing("acme", "USD", 5, 0, 0), ask, 6) is not None
