"""A price for one token was written as that of a million, and the log was deleted: litellm#20615.

Here a look beforehand says so, by validation and by a preview on the log's own
usage. And whoever publishes it all the same repairs it by entries of its own:
every event, and every charge that was wrong, stays where it is.
"""

from __future__ import annotations

import pytest
from tests.integration.pricing_world import T0_US, TIMEOUT_S, World
from tests.museum.prices import card, charged_pico, digest, postings, receipt

from kernel.clock import timestamp_of
from tollbook.pricing.v1 import cards_pb2

pytestmark = [pytest.mark.museum, pytest.mark.integration]

TYPO = card("m23", "m23", "2").replace("per: 1_000_000, ", "")


async def test_a_look_beforehand_names_the_typo(world: World) -> None:
    await world.open("m23-look")
    await world.publish(card("m23", "m23", "2"))
    await world.use("m23-look", model="m23", output=1_000, priced=False)
    await world.recorded()
    found = await world.cards.PreviewRateCard(
        cards_pb2.PreviewRateCardRequest(yaml=TYPO), timeout=TIMEOUT_S
    )
    assert [(flag.reason, flag.line) for flag in found.flags] == [("UNIT_TYPO", 5)]
    assert "1000000 times" in found.flags[0].message
    loser = next(one for one in found.losers if one.name == "m23-look")
    assert int(loser.after.amount_pico) == 10**6 * int(loser.before.amount_pico)
    checked = await world.cards.ValidateRateCard(
        cards_pb2.ValidateRateCardRequest(yaml=TYPO), timeout=TIMEOUT_S
    )
    assert "UNIT_TYPO" in {finding.reason for finding in checked.findings}


async def test_the_repair_keeps_every_original(world: World) -> None:
    await world.open("m23-fix", amount_pico=10**20)
    await world.publish(card("m23", "m23", "2"))
    await world.publish(TYPO)
    event_id = await world.use("m23-fix", model="m23", output=1_000, priced=False)
    wrong = await receipt(world, "m23-fix", event_id)
    assert int(wrong.total.amount_pico) == 1_000 * 2 * 10**12
    originals = [one for one in await postings(world, "m23-fix") if one.kind == "usage"]
    await world.publish(card("m23", "m23", "2"))
    plan = cards_pb2.PlanRerateRequest(
        rerate_id="m23",
        card_id="m23",
        event_from=timestamp_of(T0_US),
        event_to=timestamp_of(T0_US + 1),
        reason="a price for one token that was meant for a million",
    )
    await world.cards.PlanRerate(plan, timeout=TIMEOUT_S)
    post = cards_pb2.PostRerateRequest(rerate_id="m23")
    for _ in range(3):
        await world.cards.PostRerate(post, timeout=TIMEOUT_S)
    assert await charged_pico(world, "m23-fix") == 1_000 * 2 * 10**6
    after = await postings(world, "m23-fix")
    assert [one for one in after if one.kind == "usage"] == originals
    place = (wrong.log, wrong.position)
    for one in after:
        if one.kind == "correction":
            assert one.log == place[0]
            assert one.from_position <= place[1] < one.to_position
    again = await receipt(world, "m23-fix", event_id)
    assert again.lines == wrong.lines
    served, replayed = await digest(world)
    assert served == replayed
