"""A model without a price, or with another's, was charged nothing: litellm#21023, new-api#7058.

Here its usage waits, is counted and alarmed, and is charged when a card knows
it: at the event's own time, to the last unit.
"""

from __future__ import annotations

import functools
import json

import pytest
from tests.integration.ledger_world import until
from tests.integration.pricing_world import World
from tests.museum.prices import card, charged_pico, digest, postings, receipt

pytestmark = [pytest.mark.museum, pytest.mark.integration]


async def alarmed(world: World, model: str) -> bool:
    """Whether the projector's log, written when the books are, names the model in an error."""
    *lines, _unfinished = world.stack.log_file("pricing-projector").read_text().split("\n")
    return any(json.loads(line)["level"] == "error" for line in lines if model in line)


async def test_usage_without_a_price_waits_and_is_charged_later(world: World) -> None:
    await world.open("m22")
    await world.publish(card("m22", "m22-known", "1"))
    # A name that begins like a known one is not that one.
    event_id = await world.use("m22", model="m22-known-2", plain=5, output=7, priced=False)
    waiting = await receipt(world, "m22", event_id)
    assert waiting.suspense
    assert [line.line_id for line in waiting.lines] == ["", ""]
    balance = (await world.balance("m22")).balance
    assert (balance.suspense_entries, balance.charged.amount_pico) == (1, "0")
    await until("an alarm is in the log", functools.partial(alarmed, world, "m22-known-2"))

    await world.publish(card("m22-new", "m22-known-2", "3"))
    assert not (await receipt(world, "m22", event_id)).suspense
    assert await charged_pico(world, "m22") == 12 * 3 * 10**6
    assert {posting.kind for posting in await postings(world, "m22")} == {"grant", "suspense"}
    balance = (await world.balance("m22")).balance
    assert balance.suspense_entries == 0
    served, replayed = await digest(world)
    assert served == replayed
