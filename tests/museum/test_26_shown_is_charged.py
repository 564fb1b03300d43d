"""The price that was shown was not the one that was charged: langfuse#4824, #12184.

Here both are asked of the same rules: the card in force at the event's own time,
as known when the log took it. Asked later, and replayed, it is the same.
"""

from __future__ import annotations

import pytest
from tests.integration.pricing_world import T0_US, World
from tests.museum.prices import card, digest, prices, receipt

from kernel.clock import timestamp_of

pytestmark = [pytest.mark.museum, pytest.mark.integration]

HOUR_US = 3_600_000_000


async def test_what_is_shown_for_an_instant_is_what_an_event_of_it_costs(world: World) -> None:
    await world.open("m26")
    await world.publish(card("m26", "m26", "1"))
    await world.publish(card("m26", "m26", "2", "2026-01-01T01:00:00Z"))
    # Not the newest version, but the one in force: it ends, and the one before comes back.
    promotion = card("m26", "m26", "0.5", "2026-01-01T02:00:00Z")
    await world.publish(promotion.replace("lines:", "effective_to: 2026-01-01T03:00:00Z\nlines:"))
    expected = {
        T0_US: (1, 1_000_000),
        T0_US + HOUR_US - 1: (1, 1_000_000),
        T0_US + HOUR_US: (2, 2_000_000),
        T0_US + 2 * HOUR_US - 1: (2, 2_000_000),
        T0_US + 2 * HOUR_US: (3, 500_000),
        T0_US + 3 * HOUR_US - 1: (3, 500_000),
        T0_US + 3 * HOUR_US: (2, 2_000_000),
    }
    sent: list[str] = []
    for at_us, price in expected.items():
        assert await prices(world, "m26", effective_at=timestamp_of(at_us)) == {price}
        sent.append(await world.use("m26", model="m26", output=1, at_us=at_us, priced=False))
    for event_id, (version, pico) in zip(sent, expected.values(), strict=True):
        found = (await receipt(world, "m26", event_id)).lines[0]
        assert (found.card.version, int(found.unit_price_pico)) == (version, pico)
        assert int(found.amount.amount_pico) == pico
    # A later version for the same hours changes what is shown from now on, and no charge.
    before = [await receipt(world, "m26", event_id) for event_id in sent]
    await world.publish(card("m26", "m26", "9"))
    assert await prices(world, "m26", effective_at=timestamp_of(T0_US)) == {(4, 9_000_000)}
    assert [await receipt(world, "m26", event_id) for event_id in sent] == before
    served, replayed = await digest(world)
    assert served == replayed
