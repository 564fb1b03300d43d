"""Inference's way to credit, against pricing's own answers over real gRPC and a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc.aio
import pytest
from tests.integration.free_port import free_port
from tests.integration.pricing_books import Books

from inference.adapters.credit import Policy, PricingCredit
from inference.app.credit import Request
from kernel import errors, grpcs
from kernel.clock import SystemClock
from pricing.adapters import database
from pricing.adapters.answers import Reader
from pricing.adapters.control_view import ControlView
from pricing.adapters.holds import HoldDoor
from pricing.adapters.usage_answers import UsageAnswers
from pricing.domain.holds import hold_id_of
from tollbook.pricing.v1 import pricing_pb2_grpc
from tollbook.stack import Stack

pytestmark = pytest.mark.integration

OUT_PICO = 600_000
IN_PICO = 150_000


@dataclass
class House:
    """Pricing at an address, to be stopped; and its books."""

    books: Books
    server: grpcs.Server
    channel: grpc.aio.Channel
    admin: Any

    def credit(self, policy: Policy) -> PricingCredit:
        return PricingCredit(self.channel, SystemClock(), policy)

    async def held(self) -> int:
        found = await self.admin.fetchval("SELECT coalesce(sum(amount_pico), 0) FROM hold")
        return int(found)

    async def until_held(self, amount_pico: int) -> None:
        async with asyncio.timeout(60):
            while await self.held() != amount_pico:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def request(event_id: str, output: int, account_id: str = "acme") -> Request:
    return Request(
        account_id=account_id,
        project_id="",
        key_id="k",
        event_id=event_id,
        served_model="tiny",
        base_model="tiny",
        adapter="",
        input_tokens=10,
        max_output_tokens=output,
        event_time_us=SystemClock().now_us(),
    )


@pytest.fixture
async def house(pricing_tables: Stack) -> AsyncIterator[House]:
    environment = pricing_tables.environment()
    dsn = environment["TOLLBOOK_PRICING_POSTGRES"]
    admin = await asyncpg.connect(environment["TOLLBOOK_POSTGRES"])
    books = await Books.opened(admin, dsn, ("acme", "poor"))
    pool = await database.open_pool(dsn, 4, asyncio.Event())
    door = HoldDoor(pool)
    running = asyncio.ensure_future(door.run())
    view = ControlView(None)  # type: ignore[arg-type]
    view.projection = books.projection
    answers = UsageAnswers(Reader(pool, dsn), None, view, door, SystemClock())  # type: ignore[arg-type]
    address = f"127.0.0.1:{free_port()}"
    server = grpcs.Server("pricing", address)
    pricing_pb2_grpc.add_PricingServiceServicer_to_server(answers, server.grpc)
    await server.start()
    channel = grpcs.channel(address)
    try:
        yield House(books, server, channel, admin)
    finally:
        await channel.close()
        await server.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        pool.terminate()
        await admin.close()


async def test_a_request_holds_the_most_it_can_cost_until_it_is_charged(house: House) -> None:
    await house.books.grant("acme", 100 * OUT_PICO)
    credit = house.credit("refuse")
    hold_id = await credit.hold(request("one", 40))
    assert hold_id == hold_id_of("acme", "one")
    assert await house.held() == 40 * OUT_PICO + 10 * IN_PICO
    credit.settled(hold_id)
    await house.books.charge("acme", "one", 7)
    assert await house.held() == 0
    # What never ran is given back.
    other = await credit.hold(request("two", 40))
    credit.release("acme", other)
    await house.until_held(0)
    # Under the id of what is charged nothing can start.
    with pytest.raises(errors.AlreadyExists):
        await credit.hold(request("one", 40))


async def test_without_credit_it_is_told_which_limit_is_in_the_way(house: House) -> None:
    with pytest.raises(errors.QuotaExceeded) as caught:
        await house.credit("lease").hold(request("one", 1, "poor"))
    assert caught.value.reason == "NO_CREDIT"
    assert [limit.subject for limit in caught.value.violations] == ["account:poor"]


async def test_while_pricing_is_away_the_houses_policy_decides(house: House) -> None:
    await house.books.grant("acme", 100 * OUT_PICO)
    lease, refuse = house.credit("lease"), house.credit("refuse")
    await lease.hold(request("one", 1))
    await refuse.hold(request("two", 1))
    with pytest.raises(errors.QuotaExceeded):
        await lease.hold(request("three", 1, "poor"))
    await house.server.stop(0)
    # Who was granted a hold a moment ago goes on without one; who was not does not.
    assert await lease.hold(request("four", 1)) == ""
    for credit, account_id in ((lease, "poor"), (refuse, "acme")):
        with pytest.raises(errors.Unavailable) as caught:
            await credit.hold(request("five", 1, account_id))
        assert caught.value.reason == "PRICING_UNAVAILABLE"
