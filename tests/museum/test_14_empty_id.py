"""Exhibit 14: records without an id collided, and later ones were lost (litellm#6633).

Here a record without an id is rejected and kept, the log says so aloud, and its neighbours land.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from tests.integration.ledger_world import dispositions, ledger_world
from tests.unit.ledger import builders as make

from kernel import leaf as leaves
from tollbook.ledger.v1 import ledger_pb2
from tollbook.stack import Stack

pytestmark = [pytest.mark.museum, pytest.mark.integration]


async def test_a_missing_id_is_rejected_durable_and_alarmed(ground: Stack, tmp_path: Path) -> None:
    values = [
        make.wrap(make.event("e0"), 0),
        make.wrap(make.event(""), 1),
        make.wrap(make.event("e1"), 2),
        make.wrap(make.event(""), 3),
        make.wrap(make.event("e2", account_id=""), 4),
        make.wrap(make.event("e3"), 0, stream_id=""),
        make.wrap(make.event("e4"), 5),
    ]
    async with ledger_world(ground, tmp_path) as world:
        with structlog.testing.capture_logs() as said:
            async with world.workforce():
                await world.put(0, *values)
                await world.check(complete=False)
        entries = await world.entries(0)
        bad = [1, 3, 4, 5]
        expected = ["REJECTED" if at in bad else "ACCEPTED" for at in range(len(values))]
        assert dispositions(entries) == expected
        for at in bad:
            leaf = leaves.decode(entries[at])
            assert (leaf.reason, leaf.value) == (ledger_pb2.REASON_MISSING_ID, values[at])
        alarms = [line for line in said if line["event"] == "records kept but not accepted"]
        assert sum(line["rejected"] for line in alarms) == len(bad)
        listed = await world.db.fetch("SELECT position, reason FROM log_exception ORDER BY 1")
        assert [tuple(row) for row in listed] == [(at, ledger_pb2.REASON_MISSING_ID) for at in bad]
