"""The embedded database and the projection's store on it: fenced, atomic, equal to the fold."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from tests.unit.pricing import builders as make

from pricing.adapters import database, lease, queries, step_rows, store
from pricing.adapters.migrate import SCHEMA
from pricing.adapters.together import RowsGoneError
from pricing.domain import books
from pricing.domain.digest import balances_digest
from pricing.domain.identity import identity_of
from pricing.domain.projection import Projection

pytestmark = pytest.mark.integration


def tollbook(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        (sys.executable, "-m", "tollbook.cli", *arguments),
        env={**os.environ, "TOLLBOOK_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    home = tmp_path_factory.mktemp("stack")
    tollbook(home, "up", "--only", "postgres")
    try:
        words = shlex.split(tollbook(home, "env"))
        yield dict(word.split("=", 1) for word in words if "=" in word)
    finally:
        tollbook(home, "down")


async def test_a_step_is_written_once_and_a_fenced_projector_writes_nothing(
    environment: dict[str, str],
) -> None:
    admin, own = environment["TOLLBOOK_POSTGRES"], environment["TOLLBOOK_PRICING_POSTGRES"]
    password = environment["TOLLBOOK_PRICING_DB_PASSWORD"]
    assert await SCHEMA.migrate(admin, password) == await SCHEMA.migrate(admin, password)

    projection = Projection()
    control = [make.account(0), make.card(1), make.grant(2, "g1", 10**12)]
    usage = [make.event(0, plain=10, cached=20, output=30), make.event(1, model="nobody", output=1)]
    step = store.Step()
    for position, raw in enumerate(control):
        step.add("control", position, position + 1, projection.apply_control(position, raw))
    step.add("usage-0", 0, 2, projection.apply_usage("usage-0", 0, 3, usage))
    expected: dict[books.BalanceKey, int] = {}
    for _, effects in step.effects:
        books.apply(expected, effects.postings)

    db = await database.connect(own)
    try:
        paused = await lease.acquire(db)
        epoch = await lease.acquire(db)
        with pytest.raises(store.FencedError):
            await store.write(db, paused, step, await step_rows.gather(step, step_rows.Known()))
        assert step.sent.is_set(), "whoever waits for the database to work waits for ever"
        assert await store.positions(db) == {}

        await store.write(db, epoch, step, await step_rows.gather(step, step_rows.Known()))
        with pytest.raises(store.FencedError):
            await store.write(db, epoch, step, await step_rows.gather(step, step_rows.Known()))

        found = await queries.snapshot(db)
        assert found.positions == {"control": 3, "usage-0": 2}
        assert found.digest() == balances_digest(expected, {"acme": 1})
        balance = await queries.account_balance(db, "acme")
        assert balance is not None
        charged = 10 * 150_000 + 20 * 75_000 + 30 * 600_000
        assert balance.charged.amount_pico == str(charged)
        assert balance.available.amount_pico == str(10**12 - charged)
        assert balance.suspense_entries == 1
        assert balance.usage.output_tokens == 31
    finally:
        await db.close()


async def test_sums_grow_by_their_keys_and_rows_that_are_gone_stop_the_step(
    environment: dict[str, str],
) -> None:
    """Steps of one projector, of which the later ones send keys and sums alone."""
    admin, own = environment["TOLLBOOK_POSTGRES"], environment["TOLLBOOK_PRICING_POSTGRES"]
    await SCHEMA.migrate(admin, environment["TOLLBOOK_PRICING_DB_PASSWORD"])
    projection, known = Projection(), step_rows.Known()
    for position, raw in enumerate([make.account(0), make.card(1)]):
        projection.apply_control(position, raw)
    owner, db = await asyncpg.connect(admin), await database.connect(own)
    log = "usage-7"
    try:
        epoch = await lease.acquire(db)

        async def write(first: int, *outputs: int) -> None:
            leaves = [make.event(at, output=more) for at, more in enumerate(outputs, first)]
            step = store.Step()
            end = first + len(leaves)
            step.add(log, first, end, projection.apply_usage(log, first, 2, leaves))
            await store.write(db, epoch, step, await step_rows.gather(step, known))

        async def sums() -> list[tuple[int, ...]]:
            rows = await owner.fetch(
                "SELECT (SELECT sum(amount) FROM pricing.usage_minute),"
                " (SELECT sum(units) FROM pricing.bill_sum WHERE log = $1)",
                log,
            )
            return [tuple(map(int, row)) for row in rows]

        await owner.execute("DELETE FROM pricing.usage_minute")
        await write(0, 30)
        await write(1, 12, 5)
        await write(3, 3)
        # Uses count requests too.
        assert await sums() == [(50 + 4, 50)]
        await owner.execute("DELETE FROM pricing.usage_minute")
        with pytest.raises(RowsGoneError, match="usage_there"):
            await write(4, 1)
        assert (await store.positions(db))[log] == 4
    finally:
        await db.close()
        await owner.close()


@pytest.mark.parametrize(("log", "copied_from"), [("usage-11", 99), ("usage-4012", 1)])
async def test_events_are_found_by_their_identity_whether_inserted_or_copied(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, log: str, copied_from: int
) -> None:
    monkeypatch.setattr(step_rows, "_COPIED_FROM", copied_from)
    await SCHEMA.migrate(
        environment["TOLLBOOK_POSTGRES"], environment["TOLLBOOK_PRICING_DB_PASSWORD"]
    )
    projection = Projection()
    for position, raw in enumerate([make.account(0), make.card(1)]):
        projection.apply_control(position, raw)
    db = await database.connect(environment["TOLLBOOK_PRICING_POSTGRES"])
    try:
        step = store.Step()
        leaves = [make.event(at, output=at + 1) for at in range(3)]
        effects = projection.apply_usage(log, 0, 2, leaves)
        step.add(log, 0, 3, effects)
        gathered = await step_rows.gather(step, step_rows.Known())
        assert bool(gathered.copied) is (copied_from == 1)
        await store.write(db, await lease.acquire(db), step, gathered)
        assert step.sent.is_set()
        rows = await db.fetch(
            "SELECT identity, log_position FROM usage_event WHERE log = $1 ORDER BY 2", log
        )
        assert [tuple(row) for row in rows] == [
            (identity_of(event.account_id, event.event_id), event.position)
            for event in effects.applied
        ]
        assert len(rows) == 3
    finally:
        await db.close()
