"""A refund was paid for every call that asked for it, or for more than the charge: new-api#5556,
#4211.

Here ten at once give one entry, and none gives back more than was charged.
"""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from tests.integration.pricing_world import World, again, reason_of
from tests.museum.prices import card

from tollbook.pricing.v1 import accounts_pb2, money_pb2, pricing_pb2

pytestmark = [pytest.mark.museum, pytest.mark.integration]


def request(event_id: str, amount_pico: int) -> pricing_pb2.RefundChargeRequest:
    return pricing_pb2.RefundChargeRequest(
        refund=accounts_pb2.ChargeRefunded(
            account_id="m19",
            event_id=event_id,
            amount=money_pb2.Amount(currency="USD", amount_pico=str(amount_pico)),
            reason="it was wrong",
        )
    )


async def test_ten_refunds_at_once_are_one(world: World) -> None:
    await world.open("m19")
    await world.publish(card("m19", "m19-model", "2"))
    event_id = await world.use("m19", model="m19-model", plain=10, priced=False)
    await world.balance("m19", event_id=event_id)
    charged_pico = 10 * 2 * 10**6

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.control.RefundCharge(request(event_id, charged_pico + 1), timeout=30)
    assert reason_of(caught.value) == "REFUND_TOO_LARGE"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.control.RefundCharge(request("no-such-event", 1), timeout=30)
    assert reason_of(caught.value) == "EVENT_NOT_FOUND"

    answers = await asyncio.gather(
        *(
            again(lambda: world.control.RefundCharge(request(event_id, charged_pico), timeout=30))
            for _ in range(10)
        )
    )
    assert len({answer.position for answer in answers}) == 1
    listed = await world.pricing.ListPostings(
        pricing_pb2.ListPostingsRequest(account_id="m19"), timeout=30
    )
    refunds = [posting for posting in listed.postings if posting.kind == "refund"]
    assert [int(posting.amount.amount_pico) for posting in refunds] == [charged_pico]
    balance = (await world.balance("m19")).balance
    assert int(balance.available.amount_pico) == 5 * 10**12
    # A second one of another amount is another refund of the same charge.
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.control.RefundCharge(request(event_id, 1), timeout=30)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
