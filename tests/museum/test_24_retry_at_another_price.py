"""A retry was settled at another price than its request: new-api#6480.

Here an event is rated once, by the card that was known when the log took it;
whoever sends it again, and whenever, changes neither price nor route.
"""

from __future__ import annotations

import pytest
from tests.integration.pricing_world import World
from tests.museum.prices import card, charged_pico, digest, receipt

pytestmark = [pytest.mark.museum, pytest.mark.integration]


async def test_a_retry_after_a_price_change_is_the_first_charge(world: World) -> None:
    await world.open("m24")
    await world.publish(card("m24", "m24", "1"))
    event_id = await world.use("m24", model="m24", output=10, priced=False)
    first = await receipt(world, "m24", event_id)
    await world.publish(card("m24", "m24", "50"))
    for _ in range(3):
        # Each time another record of the producer, with the same words.
        await world.use("m24", model="m24", output=10, event_id=event_id, priced=False)
    last = await world.use("m24", model="m24", output=1, priced=False)
    assert (await receipt(world, "m24", last)).lines[0].card.version == 2
    again = await receipt(world, "m24", event_id)
    assert again == first
    assert again.lines[0].card.version == 1
    assert again.served_model == "m24"
    assert again.control_size < (await receipt(world, "m24", last)).control_size
    assert await charged_pico(world, "m24") == (10 * 1 + 1 * 50) * 10**6
    served, replayed = await digest(world)
    assert served == replayed
