"""What a request held was never given back when it died: litellm#27639, #30460, new-api#4429.

Here a hold whose owner died is gone within its time, and the charge that comes
too late is charged all the same.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.integration.pricing_world import PICO, World
from tests.integration.replicas import replicas
from tests.museum.prices import card

pytestmark = [pytest.mark.museum, pytest.mark.integration]

TTL_MS = 2_000
TTL_S = TTL_MS / 1_000
LONG_MS = 600_000


async def test_a_hold_whose_owner_died_is_gone_within_its_time(world: World) -> None:
    await world.open("m17", "m17-quiet", amount_pico=PICO)
    async with replicas(world.stack) as servers:
        began = time.monotonic()
        asks = [servers.reserve("m17", f"m17-{number}", PICO // 20, TTL_MS) for number in range(20)]
        asks.append(servers.reserve("m17-quiet", "m17-quiet", PICO, TTL_MS))
        assert None not in await asyncio.gather(*asks)
        given = time.monotonic()
        # All servers that made them die, and with them whoever would have given them back.
        for index in range(3):
            servers.kill(index)
        servers.start(0)
        await servers.ready(0)
        if time.monotonic() < began + TTL_S:
            early = await servers.reserve("m17", "m17-early", 1, TTL_MS)
            # Unless their time was over when it was decided.
            assert early is None or time.monotonic() >= began + TTL_S
            given = given if early is None else time.monotonic()
        # A little more, as the database's clock is another one.
        await asyncio.sleep(max(0.0, given + TTL_S - time.monotonic()) + 0.1)
        # No false denial: from that instant on all of it can be held again.
        whole = await servers.reserve("m17", "m17-whole", PICO, LONG_MS)
        assert whole is not None
        # And where nobody asks it is given back too.
        await servers.until_free("m17-quiet", 60)
        assert (await servers.holds("m17-quiet")).held.amount_pico == "0"

        # The event of a request whose hold ended is charged, and one that has its hold drops it.
        await world.publish(card("m17", "m17-model", "1"))
        for event_id in ("m17-0", "m17-whole"):
            await world.use("m17", model="m17-model", plain=1_000, event_id=event_id, priced=False)
        answer = await world.balance("m17", event_id="m17-whole")
        assert answer.balance.held.amount_pico == "0"
        assert int(answer.balance.charged.amount_pico) == 2_000 * 10**6
        # Charged, it needs no hold any more.
        assert not await servers.release("m17", whole.hold.hold_id)


async def test_nobody_ends_the_hold_of_another(world: World) -> None:
    await world.open("m17-a", "m17-b")
    async with replicas(world.stack, 1) as servers:
        made = await servers.reserve("m17-a", "m17-mine", PICO, 60_000)
        assert made is not None
        assert not await servers.release("m17-b", made.hold.hold_id)
        # An event of another account under the same id is not the same event.
        await world.use("m17-b", output=1, event_id="m17-mine", priced=False)
        await world.balance("m17-b", event_id="m17-mine")
        assert (await servers.holds("m17-a")).open_holds == 1
        assert await servers.release("m17-a", made.hold.hold_id)
        assert (await servers.holds("m17-a")).open_holds == 0
