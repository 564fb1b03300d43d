"""Exhibit 29: a retried event was claimed, metered zero times, reported done (openmeter#5118).

Here the claim (identity, place in the stream, offset) and the entry are one statement. It is made
to fail in each of its parts in turn, after the others did their work; then no part has happened,
and once the fault is gone every event is accepted, none taken for a repeat.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.integration.ledger_world import LedgerWorld, ledger_world, until

from tollbook.stack import Stack

pytestmark = [pytest.mark.museum, pytest.mark.integration]

PARTS = ("log_chunk", "log_tile", "log_pin", "producer_stream", "log_head")


async def contents(world: LedgerWorld) -> dict[str, int]:
    """Rows of everything a batch writes."""
    tables = ("log_chunk", "log_tile", "log_pin", "producer_stream", "log_exception")
    found = {name: await world.db.fetchval(f"SELECT count(*) FROM {name}") for name in tables}
    return {**found, "size": await world.size()}


@pytest.mark.parametrize("part", PARTS)
async def test_what_fails_half_way_has_not_begun(ground: Stack, tmp_path: Path, part: str) -> None:
    async with ledger_world(ground, tmp_path) as world, world.workforce():
        await until("it has its log", lambda: owned(world))
        before = await contents(world)
        moment = "UPDATE OF size" if part == "log_head" else "INSERT"
        await world.db.execute(
            "CREATE SEQUENCE failures; GRANT USAGE ON failures TO tollbook_ledger;"
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM nextval('ledger.failures');"  # a sequence counts also what is rolled back
            " RAISE EXCEPTION 'made to fail' USING ERRCODE = 'disk_full'; END $$;"
            f"CREATE TRIGGER fail AFTER {moment} ON {part}"
            " FOR EACH ROW EXECUTE FUNCTION fail()"
        )
        # A tile and more in one batch, so that each part has something to write.
        producing = asyncio.create_task(world.deliver(0, world.values(0, 600), batch_bytes=900_000))
        await until("it was tried and failed", lambda: tried(world, 3))
        assert await contents(world) == before
        await world.db.execute(f"DROP TRIGGER fail ON {part}")
        await producing
        assert await world.check() == 600


async def owned(world: LedgerWorld) -> bool:
    heads = await world.heads()
    return bool(heads) and all(head["owner"] for head in heads.values())


async def tried(world: LedgerWorld, times: int) -> bool:
    count: int = await world.db.fetchval(
        "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM failures"
    )
    return count >= times
