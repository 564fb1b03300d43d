"""Exhibit 11: a flush wrote the first hundred keys and dropped the rest (litellm#29292).

Here 10,001 accounts, each with a stream of its own, come in one flush: one more than the owner
keeps streams of in memory. All of them land.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.ledger_world import ledger_world
from tests.unit.ledger import builders as make

from kernel import leaf as leaves
from ledger.domain.batch import MAX_STREAMS_KEPT
from tollbook.stack import Stack
from tollbook.usage.v1 import usage_pb2

pytestmark = [pytest.mark.museum, pytest.mark.integration]

KEYS = 10_001


async def test_ten_thousand_and_one_keys_in_one_flush_all_land(
    ground: Stack, tmp_path: Path
) -> None:
    assert KEYS > MAX_STREAMS_KEPT
    accounts = [f"account-{number}" for number in range(KEYS)]
    async with ledger_world(ground, tmp_path) as world:
        for round_ in range(2):  # all new, then all known to the database and not to the owner
            await world.put(
                0,
                *(
                    make.wrap(make.event(f"e{round_}", account), round_, f"stream of {account}")
                    for account in accounts
                ),
                batch_bytes=900_000,
            )
        async with world.workforce(batch_records=100_000):
            await world.check(complete=False)
        landed = [
            usage_pb2.UsageEvent.FromString(
                usage_pb2.UsageRecord.FromString(leaves.decode(entry).value).usage_event
            ).account_id
            for entry in await world.entries(0)
        ]
        assert landed == accounts * 2
        assert (await world.head())["accepted"] == 2 * KEYS
