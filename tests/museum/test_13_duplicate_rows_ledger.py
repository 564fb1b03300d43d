"""Exhibit 13: redelivery made duplicate rows (litellm#15740, #17814).

Here everything is delivered ten times: by the same producer, by a producer that started again and
numbers anew, and by somebody who reads the topic from offset 0 and sends all of it once more, with
other owners in between. Each event is accepted once, and every repeat is kept as a duplicate.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.ledger_world import dispositions, ledger_world
from tests.unit.ledger import builders as make

from tollbook.stack import Stack

pytestmark = [pytest.mark.museum, pytest.mark.integration]

EVENTS = 200


def sent_by(stream_id: str) -> list[bytes]:
    return [make.wrap(make.event(f"e{n}"), n, stream_id) for n in range(EVENTS)]


async def test_ten_times_redelivered_and_read_again_each_event_is_accepted_once(
    ground: Stack, tmp_path: Path
) -> None:
    async with ledger_world(ground, tmp_path) as world:
        for number in range(5):
            async with world.workforce():  # an owner of its own for each round
                await world.put(0, *sent_by("the same stream"))
                await world.put(0, *sent_by(f"boot {number}"))
                await world.check(complete=False)
        async with world.workforce():
            everything = await world.records(0, 10 * EVENTS)
            await world.deliver(0, [(key or b"", value) for _, _, key, value in everything])
            await world.check(complete=False)
        found = dispositions(await world.entries(0))
        assert len(found) == 20 * EVENTS
        assert found[:EVENTS] == ["ACCEPTED"] * EVENTS
        assert set(found[EVENTS:]) == {"DUPLICATE"}
