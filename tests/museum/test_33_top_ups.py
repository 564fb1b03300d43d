"""Credits were settled twice, and a top-up rule fired again and again: lago-api#3618, #6103.

Here a rule fires once for each time the balance falls below its threshold,
however many servers watch it and however many charges cross it at once.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.pricing_world import PICO, World, again
from tests.integration.replicas import replicas
from tests.museum.prices import card

from tollbook.pricing.v1 import accounts_pb2, money_pb2, pricing_pb2

pytestmark = [pytest.mark.museum, pytest.mark.integration]


def usd(amount_pico: int) -> money_pb2.Amount:
    return money_pb2.Amount(currency="USD", amount_pico=str(amount_pico))


async def top_ups(world: World, account_id: str) -> list[int]:
    listed = await world.pricing.ListPostings(
        pricing_pb2.ListPostingsRequest(account_id=account_id, page_size=1000), timeout=30
    )
    return [
        int(posting.amount.amount_pico) for posting in listed.postings if posting.kind == "top-up"
    ]


async def spend(world: World, tokens: int) -> None:
    """A hundred charges at once, of so many tokens each, all applied."""
    events = await asyncio.gather(
        *(world.use("m33", model="m33-model", output=tokens, priced=False) for _ in range(100))
    )
    await asyncio.gather(*(world.balance("m33", event_id=event_id) for event_id in events))


async def until_topped_up(world: World, times: int, account_id: str = "m33") -> None:
    async with asyncio.timeout(60):
        while len(await top_ups(world, account_id)) < times:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def set_rule(world: World, account_id: str) -> None:
    rule = accounts_pb2.TopUpRuleSet(
        rule_id=account_id, account_id=account_id, threshold=usd(PICO), amount=usd(2 * PICO)
    )
    await world.control.SetTopUpRule(pricing_pb2.SetTopUpRuleRequest(rule=rule), timeout=30)


async def until_looked(world: World) -> None:
    """Return when whoever watches has looked at all accounts: another one, that falls twice below
    its threshold, was found both times.
    """
    for times in (1, 2):
        # What is left to it is 3, and each time 2 more after that.
        tokens = 2_000_001 if times == 1 else 2_000_000
        await world.use("m33-mark", model="m33-model", output=tokens, priced=False)
        await until_topped_up(world, times, "m33-mark")


async def test_a_rule_fires_once_for_each_crossing(world: World) -> None:
    await world.open("m33", amount_pico=PICO + PICO // 20)
    await world.open("m33-mark", amount_pico=3 * PICO)
    # A dollar for a million tokens.
    await world.publish(card("m33", "m33-model", "1"))
    await set_rule(world, "m33")
    await set_rule(world, "m33-mark")
    async with replicas(world.stack) as _:
        # 1.05, less 100 x 0.01, is below 1 from the sixth charge on.
        await spend(world, 10_000)
        await until_topped_up(world, 1)
        # 2.05, less 100 x 0.02.
        await spend(world, 20_000)
        await until_topped_up(world, 2)
        # 2.05 now: nothing crosses.
        await spend(world, 10_000)
        await until_looked(world)
        assert await top_ups(world, "m33") == [2 * PICO, 2 * PICO]
    balance = (await world.balance("m33")).balance
    assert int(balance.available.amount_pico) == 5 * PICO + PICO // 20 - 4 * PICO
    assert int(balance.charged.amount_pico) == 4 * PICO


async def test_a_payment_told_a_hundred_times_is_credited_once(world: World) -> None:
    await world.create("m33-paid")
    request = pricing_pb2.TopUpRequest(
        top_up=accounts_pb2.CreditToppedUp(
            top_up_id="payment-1", account_id="m33-paid", amount=usd(3 * PICO)
        )
    )
    answers = await asyncio.gather(
        *(again(lambda: world.control.TopUp(request, timeout=30)) for _ in range(100))
    )
    assert len({answer.position for answer in answers}) == 1
    assert await top_ups(world, "m33-paid") == [3 * PICO]
