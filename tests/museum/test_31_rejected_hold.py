"""A hold was left out of the balance check, and a rejected one applied: blnk#181, #182.

Here the same walk through holds is made on the running service and on a model
of a few lines, and they agree at every step. (The law itself, on thousands of
walks, is in tests/unit/pricing/test_holds.py.)
"""

from __future__ import annotations

import random

import grpc
import grpc.aio
import pytest
from tests.integration.pricing_world import World
from tests.integration.replicas import Replicas, replicas

pytestmark = [pytest.mark.museum, pytest.mark.integration]

STEPS = 150
CREDIT = 1_000


async def extend(servers: Replicas, hold_id: str, amount: int) -> bool:
    try:
        await servers.extend("m31", hold_id, 600_000, amount)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return True


async def test_service_and_model_agree_at_every_step(world: World) -> None:
    await world.open("m31", amount_pico=CREDIT)
    held: dict[str, int] = {}
    dice = random.Random(31)
    async with replicas(world.stack, 2) as servers:
        for step in range(STEPS):
            free = CREDIT - sum(held.values())
            amount = dice.choice((1, 100, 300, free, free + 1))
            what = dice.choice(("reserve", "reserve", "extend", "release", "refused"))
            if what in ("reserve", "refused"):
                asked = amount if what == "reserve" else free + dice.randint(1, 500)
                made = await servers.reserve("m31", f"m31-{step}", asked, 600_000)
                assert (made is not None) == (asked <= free or asked == 0), (asked, free)
                if made is not None:
                    held[made.hold.hold_id] = asked
                    assert int(made.spendable.amount_pico) == free - asked
            elif held:
                hold_id = dice.choice(sorted(held))
                if what == "extend":
                    wanted = held[hold_id] + max(0, amount)
                    granted = await extend(servers, hold_id, wanted)
                    assert granted == (wanted - held[hold_id] <= free)
                    if granted:
                        held[hold_id] = wanted
                else:
                    assert await servers.release("m31", hold_id)
                    del held[hold_id]
            listed = await servers.holds("m31")
            assert {hold.hold_id: int(hold.amount.amount_pico) for hold in listed.holds} == held
            assert int(listed.held.amount_pico) == sum(held.values())
        balance = (await world.balance("m31")).balance
        assert int(balance.available.amount_pico) == CREDIT
        assert int(balance.held.amount_pico) == sum(held.values())
