"""Exhibit 30: one id with two timestamps was charged twice (flexprice#2659).

Here identity ignores every timestamp. The same body at another time of arrival is a duplicate; a
body that says another time is a conflict: kept, said aloud, not accepted.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from tests.integration.ledger_world import dispositions, ledger_world
from tests.unit.ledger import builders as make

from kernel import leaf as leaves
from tollbook.stack import Stack
from tollbook.usage.v1 import usage_pb2

pytestmark = [pytest.mark.museum, pytest.mark.integration]


async def test_identity_ignores_the_timestamp_and_another_body_is_a_conflict(
    ground: Stack, tmp_path: Path
) -> None:
    event = make.event("one")
    later = usage_pb2.UsageEvent.FromString(event.SerializeToString())
    later.event_time.seconds += 86_400 * 400
    async with ledger_world(ground, tmp_path) as world:
        with structlog.testing.capture_logs() as said:
            async with world.workforce():
                await world.put(0, make.wrap(event, 0, "a"))
                for values in (
                    [make.wrap(event, 0, "b")],
                    [make.wrap(later, 0, "c"), make.wrap(later, 0, "d")],
                    [make.wrap(event, 0, "e")],
                ):
                    await world.check(complete=False)  # so that each is met by the log alone
                    await world.put(0, *values)
                await world.check(complete=False)
        entries = await world.entries(0)
        expected = ["ACCEPTED", "DUPLICATE", "CONFLICT", "CONFLICT", "DUPLICATE"]
        assert dispositions(entries) == expected
        arrived = [leaves.decode(entry).timestamp_ms for entry in entries]
        assert arrived[0] < arrived[-1]
        alarms = [line for line in said if line["event"] == "records kept but not accepted"]
        assert sum(line["conflict"] for line in alarms) == 2
