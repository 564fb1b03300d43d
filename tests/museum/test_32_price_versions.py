"""Usage ignored the versions of a price: killbill#1001, #1887.

Here events on both sides of a change, early, late and out of order, are each
charged by the version of their own time, and a replay in other pieces and
another order comes to the same bytes.
"""

from __future__ import annotations

import pytest
from tests.integration.pricing_world import T0_US, World
from tests.museum.prices import card, charged_pico, digest, receipt

pytestmark = [pytest.mark.museum, pytest.mark.integration]

CHANGE_US = T0_US + 86_400_000_000


async def test_events_straddling_a_change_have_each_its_own_version(world: World) -> None:
    await world.open("m32")
    await world.publish(card("m32", "m32", "1"))
    # Of tomorrow, taken in before the change was known: it was rated by what was known then.
    early = await world.use("m32", model="m32", output=1, at_us=CHANGE_US, priced=False)
    assert (await receipt(world, "m32", early)).lines[0].card.version == 1
    await world.publish(card("m32", "m32", "7", "2026-01-02T00:00:00Z"))
    sent = {
        at_us: await world.use("m32", model="m32", output=1, at_us=at_us, priced=False)
        for at_us in (CHANGE_US + 1, CHANGE_US - 1, CHANGE_US, T0_US, CHANGE_US - 2)
    }
    for at_us, event_id in sent.items():
        version = 2 if at_us >= CHANGE_US else 1
        assert (await receipt(world, "m32", event_id)).lines[0].card.version == version
    assert (await receipt(world, "m32", early)).lines[0].card.version == 1
    assert await charged_pico(world, "m32") == (4 * 1 + 2 * 7) * 10**6
    served, replayed = await digest(world)
    assert served == replayed
