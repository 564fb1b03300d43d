"""A balance was checked, then spent by many at once: new-api#5690, one-api#2440, litellm#34732.

Here 1,000 ask for 0.10 of 5.00 at once, on three servers that are killed one
after the other: exactly 50 get it.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.pricing_world import PICO, World
from tests.integration.replicas import replicas

from tollbook.pricing.v1 import holds_pb2

pytestmark = [pytest.mark.museum, pytest.mark.integration]

ASKS = 1_000
LONG_MS = 600_000


async def test_a_thousand_at_once_against_credit_for_fifty(world: World) -> None:
    await world.open("m16", amount_pico=5 * PICO)
    answered = asyncio.Semaphore(0)

    async with replicas(world.stack) as servers:

        async def ask(number: int) -> holds_pb2.ReserveResponse | None:
            # Not all in the same instant, so that some come while a server is down.
            await asyncio.sleep(number % 10 * 0.1)
            answer = await servers.reserve("m16", f"m16-{number}", PICO // 10, LONG_MS)
            answered.release()
            return answer

        async def kill_each() -> None:
            for index in range(3):
                for _ in range(ASKS // 5):
                    await answered.acquire()
                servers.kill(index)
                servers.start(index)
                await servers.ready(index)

        killing = asyncio.ensure_future(kill_each())
        answers = await asyncio.gather(*(ask(number) for number in range(ASKS)))
        await killing
        admitted = [answer for answer in answers if answer is not None]
        assert len(admitted) == 50
        assert len({answer.hold.hold_id for answer in admitted}) == 50
        listed = await servers.holds("m16")
        assert (listed.open_holds, int(listed.held.amount_pico)) == (50, 5 * PICO)

        # Whoever asks again is answered as before: the admitted with their hold, the others not.
        first = next(number for number, answer in enumerate(answers) if answer is not None)
        again = await servers.reserve("m16", f"m16-{first}", PICO // 10, LONG_MS)
        assert again is not None
        assert again.hold == answers[first].hold  # type: ignore[union-attr]
        assert await servers.reserve("m16", "m16-more", 1, LONG_MS) is None

        # Their time over, all of it is free, and nobody is refused for nothing.
        for answer in admitted:
            await servers.extend("m16", answer.hold.hold_id, 1_000)
        await servers.until_free("m16", 60)
        assert (await servers.holds("m16")).held.amount_pico == "0"
        assert await servers.reserve("m16", "m16-all", 5 * PICO, 1_000) is not None
        await servers.until_free("m16", 60)
