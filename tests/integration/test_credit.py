"""Holds, limits, lots and usage on the real tables: what the door and the answers say of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from tests.integration.pricing_books import Books, running
from tests.unit.pricing import builders as make

from kernel import errors
from kernel.clock import SystemClock, timestamp_of
from kernel.money import format_pico
from pricing.adapters import credit_changes, database, expiry, listings
from pricing.adapters.answers import Reader
from pricing.adapters.control_view import ControlView
from pricing.adapters.hold_ops import Made, Reserving
from pricing.adapters.holds import HoldDoor
from pricing.adapters.usage_answers import UsageAnswers
from pricing.domain.card import content_hash
from pricing.domain.card_yaml import parse_card
from pricing.domain.holds import Ask, hold_id_of
from pricing.domain.rerating import batch_digest
from tollbook.pricing.v1 import (
    accounts_pb2,
    card_records_pb2,
    control_pb2,
    holds_pb2,
    money_pb2,
    pricing_pb2,
    reports_pb2,
)
from tollbook.stack import Stack

pytestmark = pytest.mark.integration

TOKEN_PICO = 600_000
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 86_400_000_000


def usd(amount_pico: int) -> money_pb2.Amount:
    return money_pb2.Amount(currency="USD", amount_pico=str(amount_pico))


class Call:
    """Stands for a gRPC call's context."""

    def time_remaining(self) -> float:
        return 60.0


@dataclass
class Desk:
    """Books, a door and the answers, on one database."""

    books: Books
    door: HoldDoor
    answers: UsageAnswers
    admin: Any

    async def hold(
        self, event_id: str, tokens: int, project: str = "", key: str = "", at_us: int = make.T0_US
    ) -> Made:
        ask = Ask(hold_id_of("acme", event_id), "acme", project, key, tokens * TOKEN_PICO, at_us)
        return await self.door.reserve(Reserving(ask, "USD", HOUR_US))

    async def refused(self, event_id: str, tokens: int, **more: Any) -> list[str]:
        """The limits in the way of a hold."""
        with pytest.raises(errors.QuotaExceeded) as caught:
            await self.hold(event_id, tokens, **more)
        return [limit.subject for limit in caught.value.violations]


@pytest.fixture
async def desk(pricing_tables: Stack) -> AsyncIterator[Desk]:
    environment = pricing_tables.environment()
    dsn = environment["TOLLBOOK_PRICING_POSTGRES"]
    admin = await asyncpg.connect(environment["TOLLBOOK_POSTGRES"])
    books = await Books.opened(admin, dsn, ("acme", "birch"))
    pool = await database.open_pool(dsn, 4, asyncio.Event())
    reader: Any = Reader(pool, dsn)
    view = ControlView(None)  # type: ignore[arg-type]
    view.projection = books.projection
    try:
        async with running(HoldDoor(pool)) as door:
            answers = UsageAnswers(reader, None, view, door, SystemClock())  # type: ignore[arg-type]
            yield Desk(books, door, answers, admin)
    finally:
        pool.terminate()
        await admin.close()


async def set_limit(
    desk: Desk, change: str, tokens: int, window: int, zone: str = "UTC", key: str = ""
) -> None:
    await desk.books.change(
        limit_set=make.limit(
            "acme",
            window,  # type: ignore[arg-type]
            tokens * TOKEN_PICO,
            f"limit{key}",
            change_id=change,
            project_id="shop" if key else "",
            time_zone=zone,
        )
    )


async def test_a_charge_drops_its_hold_and_leaves_the_others(desk: Desk) -> None:
    await desk.books.grant("acme", 100 * TOKEN_PICO)
    await desk.hold("one", 60)
    assert await desk.refused("two", 41) == ["account:acme"]
    made = await desk.hold("two", 40)
    assert made.spendable_pico == 0
    await desk.books.charge("acme", "one", 50)
    assert (await desk.hold("three", 10)).spendable_pico == 0
    with pytest.raises(errors.FailedPrecondition):
        await desk.hold("one", 1)


async def test_limits_of_a_window_count_what_is_spent_and_what_is_held(desk: Desk) -> None:
    await desk.books.grant("acme", 10_000 * TOKEN_PICO)
    await desk.books.charge("acme", "before", 30)
    await set_limit(desk, "c1", 100, accounts_pb2.SPEND_WINDOW_DAY)
    await set_limit(desk, "c2", 20, accounts_pb2.SPEND_WINDOW_DAY, key="x")
    # 30 of the day were spent before there was a limit.
    assert await desk.refused("a", 71) == ["limit:limit"]
    await desk.hold("a", 50)
    assert await desk.refused("b", 21) == ["limit:limit"]
    # In the project the smaller limit is in the way first.
    assert await desk.refused("c", 21, project="shop") == ["limit:limit", "limit:limitx"]
    await desk.hold("d", 20, project="shop")
    # The next day is another window; the charge frees what it did not use of its hold.
    await desk.hold("e", 100, at_us=make.T0_US + DAY_US)
    assert await desk.refused("f", 1) == ["limit:limit"]
    await desk.books.charge("acme", "a", 10)
    await desk.hold("f", 40)
    assert await desk.refused("g", 1) == ["limit:limit"]
    # Another zone, other windows, counted from the same events: T0 is the evening before there.
    await set_limit(desk, "c3", 100, accounts_pb2.SPEND_WINDOW_DAY, "America/New_York")
    spent = await desk.admin.fetch(
        "SELECT window_start_us, amount_pico FROM limit_spent WHERE limit_id = 'limit'"
    )
    assert [(row["window_start_us"], int(row["amount_pico"])) for row in spent] == [
        (make.T0_US - 19 * 3_600_000_000, 40 * TOKEN_PICO)
    ]


async def test_credit_that_is_for_a_project_or_ended_is_held_by_nobody_else(desk: Desk) -> None:
    for grant_id, more in (
        ("shop", {"project_id": "shop"}),
        ("soon", {"expires_time": timestamp_of(make.T0_US + 10 * MINUTE_US)}),
    ):
        await desk.books.change(
            credit_granted=control_pb2.CreditGranted(
                grant_id=grant_id,
                account_id="acme",
                amount=usd(10 * TOKEN_PICO),
                **more,
            )
        )
    assert await desk.refused("a", 11) == ["account:acme"]
    assert await desk.refused("b", 21, project="shop") == ["account:acme"]
    late_us = make.T0_US + 10 * MINUTE_US
    assert await desk.refused("c", 1, at_us=late_us) == ["account:acme"]
    assert (await desk.hold("d", 10, project="shop", at_us=late_us)).spendable_pico == 0
    # What the project holds is its own lot's: the other lot is free for all until it ends.
    await desk.hold("e", 10)
    await desk.books.charge("acme", "e", 10)
    assert await desk.refused("f", 1) == ["account:acme"]


async def test_holds_and_the_end_of_a_month_take_from_lots_in_one_order(desk: Desk) -> None:
    for grant_id, priority, more in (
        ("soon", 0, {"expires_time": timestamp_of(make.T0_US + 10 * MINUTE_US)}),
        ("mine", 1, {"project_id": "a", "expires_time": timestamp_of(make.T0_US + DAY_US)}),
        ("last", 2, {}),
    ):
        grant = control_pb2.CreditGranted(
            grant_id=grant_id,
            account_id="acme",
            amount=usd(10 * TOKEN_PICO),
            priority=priority,
            **more,
        )
        await desk.books.change(credit_granted=grant)
    # `b` came first; in a stretch `a` pays first, of `soon`, and `b` needs half of `last`.
    await desk.books.charge("acme", "one", 10, make.T0_US + MINUTE_US, project_id="b")
    await desk.books.charge("acme", "two", 5, make.T0_US + 5 * MINUTE_US, project_id="a")
    assert await desk.refused("three", 6, project="b") == ["account:acme"]
    await desk.hold("three", 5, project="b")
    ended = await expiry.due(desk.admin, "2026-01")
    assert [(one.grant_id, int(one.amount.amount_pico)) for one in ended] == [
        ("soon", 0),
        ("mine", 10 * TOKEN_PICO),
    ]


async def test_what_has_no_price_is_no_route_past_the_credit(desk: Desk) -> None:
    def asked(event_id: str) -> holds_pb2.ReserveRequest:
        bound = holds_pb2.UsageBound(
            served_model="nobody-prices-it", input_tokens=10, max_output_tokens=10
        )
        return holds_pb2.ReserveRequest(
            account_id="birch", event_id=event_id, bound=bound, ttl_ms=HOUR_US // 1000
        )

    answers: Any = desk.answers
    with pytest.raises(errors.QuotaExceeded) as caught:
        await answers.Reserve(asked("one"), Call())
    assert caught.value.reason == "NO_CREDIT"
    await desk.books.grant("birch", 1)
    made = await answers.Reserve(asked("one"), Call())
    assert made.unpriced
    assert (made.hold.amount.amount_pico, made.spendable.amount_pico) == ("1", "0")
    with pytest.raises(errors.QuotaExceeded):
        await answers.Reserve(asked("two"), Call())


async def test_postpaid_goes_as_far_below_as_its_terms_say(desk: Desk) -> None:
    assert await desk.refused("a", 1) == ["account:acme"]
    terms = accounts_pb2.TermsSet(
        terms_id="t1", account_id="acme", credit_limit=usd(50 * TOKEN_PICO)
    )
    await desk.books.change(terms_set=terms)
    await desk.hold("a", 50)
    assert await desk.refused("b", 1) == ["account:acme"]
    # What costs nothing is refused to nobody.
    await desk.hold("free", 0)


async def test_usage_is_summed_by_anything_and_balances_are_had_as_of_any_minute(
    desk: Desk,
) -> None:
    await desk.books.grant("acme", 10_000 * TOKEN_PICO)
    for number in range(6):
        await desk.books.charge(
            "acme",
            f"e{number}",
            10 + number,
            make.T0_US + number * MINUTE_US,
            project_id=f"p{number % 2}",
            key_id=f"k{number % 3}",
        )
    span: dict[str, Any] = {
        "account_id": "acme",
        "from_time": timestamp_of(make.T0_US),
        "to_time": timestamp_of(make.T0_US + DAY_US),
    }
    by: Any
    for by in ((), (1,), (2, 3), (8, 9), tuple(range(1, 10))):
        for bucket in accounts_pb2.SpendWindow.values():
            request = reports_pb2.GetUsageRequest(
                group_by=by, bucket=bucket, time_zone="Asia/Kolkata", **span
            )
            answer = await desk.answers.GetUsage(request, Call())
            assert sum(int(row.charge.amount_pico) for row in answer.rows) == 75 * TOKEN_PICO
            assert sum(row.amount for row in answer.rows) == 75
            assert sum(row.requests for row in answer.rows) == 6
    by_project = await desk.answers.GetUsage(
        reports_pb2.GetUsageRequest(group_by=(reports_pb2.USAGE_DIMENSION_PROJECT,), **span), Call()
    )
    assert [(row.project_id, row.charged_amount) for row in by_project.rows] == [
        ("p0", 10 + 12 + 14),
        ("p1", 11 + 13 + 15),
    ]
    for minutes in range(7):
        found = await desk.answers.GetBalance(
            pricing_pb2.GetBalanceRequest(
                account_id="acme", as_of_time=timestamp_of(make.T0_US + minutes * MINUTE_US)
            ),
            Call(),
        )
        charged = sum(10 + number for number in range(minutes)) * TOKEN_PICO
        assert int(found.balance.charged.amount_pico) == charged
        # The grant was recorded in the first instant, as all control records here.
        granted = 10_000 * TOKEN_PICO if minutes else 0
        assert int(found.balance.available.amount_pico) == granted - charged


async def test_as_of_an_instant_after_all_it_is_the_balance_of_now_whatever_was_posted(
    desk: Desk,
) -> None:
    """Corrections and a month's most are postings and no usage: they count as of an instant too."""
    books = desk.books
    await books.grant("acme", 10_000 * TOKEN_PICO)
    capped = (
        "card: capped\ncurrency: USD\neffective_from: 2026-01-01T00:00:00Z\naccounts: [birch]\n"
    )
    capped += f"commitment: {{maximum: {format_pico(30 * TOKEN_PICO)}}}\nlines:\n"
    capped += "  - {id: o, match: {model: tiny, direction: out}, per: 1000000, price: 0.6}\n"
    await books.change(rate_card_published=make.published(parse_card(capped)))
    books.pin += 2
    await books.charge("acme", "dear", 50)
    await books.charge("birch", "much", 100, make.T0_US + MINUTE_US)
    await books.charge("birch", "more", 7, make.T0_US + 2 * MINUTE_US)
    correction = card_records_pb2.Correction(
        log="usage-0",
        from_position=0,
        to_position=1,
        account_id="acme",
        card_id="standard",
        version=1,
        content_hash=content_hash(parse_card(make.CARD).document()),
        line_id="tiny-out",
        amount=usd(-20 * TOKEN_PICO),
    )
    plan = card_records_pb2.ReratePlanned(
        rerate_id="r",
        card_id="standard",
        event_from=timestamp_of(make.T0_US),
        event_to=timestamp_of(make.T0_US + DAY_US),
        control_size=books.pin,
        logs=[card_records_pb2.LogSize(log="usage-0", size=3)],
        corrections=1,
        batch_digests=[batch_digest([correction])],
    )
    await books.change(rerate_planned=plan)
    await books.change(
        corrections_posted=card_records_pb2.CorrectionsPosted(
            rerate_id="r", corrections=[correction]
        )
    )
    for account_id, charged in (("acme", 30), ("birch", 30)):
        now, later, before = [
            (
                await desk.answers.GetBalance(
                    pricing_pb2.GetBalanceRequest(account_id=account_id, as_of_time=at), Call()
                )
            ).balance
            for at in (None, timestamp_of(make.T0_US + DAY_US), timestamp_of(make.T0_US))
        ]
        assert int(now.charged.amount_pico) == charged * TOKEN_PICO
        for name in ("available", "granted", "charged"):
            assert getattr(later, name) == getattr(now, name), (account_id, name)
            assert int(getattr(before, name).amount_pico) == 0


async def test_a_watched_balance_is_told_when_it_changes(desk: Desk) -> None:
    await desk.books.grant("acme", 100 * TOKEN_PICO)
    watch: Any = desk.answers.WatchBalance(
        pricing_pb2.WatchBalanceRequest(account_id="acme"), Call()
    )
    first = await anext(watch)
    assert int(first.balance.available.amount_pico) == 100 * TOKEN_PICO
    await desk.hold("one", 30)
    assert int((await anext(watch)).balance.held.amount_pico) == 30 * TOKEN_PICO
    await desk.books.charge("acme", "one", 5)
    last = (await anext(watch)).balance
    assert (int(last.available.amount_pico), last.held.amount_pico) == (95 * TOKEN_PICO, "0")
    await watch.aclose()


async def test_a_rule_is_armed_again_only_above_its_threshold(desk: Desk) -> None:
    async def due() -> list[int]:
        return [row["crossings"] for row in await desk.admin.fetch(credit_changes.CROSSED)]

    async def fire(crossing: int) -> None:
        made = accounts_pb2.CreditToppedUp(
            top_up_id=f"rule/acme/{crossing}",
            account_id="acme",
            amount=usd(5 * TOKEN_PICO),
            crossing=crossing,
        )
        await desk.books.change(credit_topped_up=made)

    await desk.books.grant("acme", 20 * TOKEN_PICO)
    rule = accounts_pb2.TopUpRuleSet(
        rule_id="r", account_id="acme", threshold=usd(10 * TOKEN_PICO), amount=usd(5 * TOKEN_PICO)
    )
    await desk.books.change(top_up_rule_set=rule)
    assert await due() == []
    await desk.books.charge("acme", "a", 18)
    assert await due() == [0]
    await fire(1)
    # 7 now: still below, and paid for once. A second record of the crossing counts for nothing.
    assert await due() == []
    await fire(1)
    await desk.books.charge("acme", "b", 1)
    assert await due() == []
    await desk.books.grant("acme", 10 * TOKEN_PICO)
    await desk.books.charge("acme", "c", 10)
    assert await due() == [1]
    await fire(2)
    balance = await desk.admin.fetchval(
        "SELECT amount_pico FROM balance WHERE ledger_account = 'account:acme'"
    )
    assert int(balance) == (20 - 18 + 5 - 1 + 10 - 10 + 5) * TOKEN_PICO


async def test_pages_of_balances_are_of_one_instant(desk: Desk) -> None:
    def page(token: str = "") -> pricing_pb2.ListBalancesRequest:
        return pricing_pb2.ListBalancesRequest(page_size=1, page_token=token)

    for account_id in ("acme", "birch"):
        await desk.books.grant(account_id, 10 * TOKEN_PICO)
    first = await desk.answers.ListBalances(page(), Call())
    # What is charged between two pages is in neither.
    await desk.books.charge("birch", "one", 3)
    second = await desk.answers.ListBalances(page(first.next_page_token), Call())
    assert [balance.account_id for balance in (*first.balances, *second.balances)] == [
        "acme",
        "birch",
    ]
    assert int(second.balances[0].available.amount_pico) == 10 * TOKEN_PICO
    assert second.positions == first.positions
    assert second.next_page_token == ""
    whole = await desk.answers.ListBalances(pricing_pb2.ListBalancesRequest(), Call())
    assert whole.next_page_token == ""
    assert whole.balances_digest != first.balances_digest
    assert int(whole.balances[1].available.amount_pico) == 7 * TOKEN_PICO

    # One that is kept no more, or never was, says so; anything else is no token.
    with pytest.raises(errors.FailedPrecondition) as over:
        await desk.answers.ListBalances(page("00000003-0000001B-1/acme"), Call())
    assert over.value.reason == "LISTING_OVER"
    for wrong in ("1", "00000003-0000001B-1", "' OR 1/acme", "00000003-0000001B-1'/acme"):
        with pytest.raises(errors.InvalidArgument):
            await desk.answers.ListBalances(page(wrong), Call())
    # A few listings at once, and no more.
    for _ in range(listings.MAX_KEPT - 1):
        assert (await desk.answers.ListBalances(page(), Call())).next_page_token
    with pytest.raises(errors.Unavailable) as many:
        await desk.answers.ListBalances(page(), Call())
    assert many.value.reason == "TOO_MANY_LISTINGS"
