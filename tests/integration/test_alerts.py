"""Alerts on the real tables: raised with the charge that is their cause, and told until taken."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.integration.pricing_books import Books
from tests.integration.webhook_receiver import SECRET, Receiver, receiving
from tests.unit.pricing import builders as make

from pricing.adapters import alert_rules, database
from pricing.adapters.alert_store import Watch
from pricing.adapters.webhooks import Webhooks
from tollbook.stack import Stack

pytestmark = pytest.mark.integration

TOKEN_PICO = 600_000
HOUR_US = 3_600 * 10**6
RULES = """
rules:
  - {id: low, kind: balance_below, amount: "5"}
  - {id: spent, kind: spent, window: day, amount: "3"}
  - {id: fast, kind: burn_rate, hours: 4, accounts: [burner]}
  - {id: jump, kind: spike, window: hour, times: 10, amount: "0.5", accounts: [jumper]}
  - {id: unpriced, kind: suspense, entries: 2}
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@dataclass
class Desk:
    """Books that are watched."""

    books: Books
    admin: Any
    dsn: str
    path: Path

    async def alerts(self) -> list[tuple[str, str]]:
        """(rule, account) of every alert, in the order they were raised."""
        rows = await self.admin.fetch(
            "SELECT rule_id, account_id FROM alert ORDER BY raised_at, alert_id"
        )
        return [tuple(row) for row in rows]

    async def undelivered(self) -> int:
        found: int = await self.admin.fetchval(
            "SELECT count(*) FROM alert_delivery WHERE done_at IS NULL"
        )
        return found

    async def until_told(self) -> None:
        async with asyncio.timeout(120):
            while await self.undelivered():  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(0.05)


@pytest.fixture
async def desk(pricing_tables: Stack, receiver: Receiver, tmp_path: Path) -> AsyncIterator[Desk]:
    environment = pricing_tables.environment()
    dsn = environment["TOLLBOOK_PRICING_POSTGRES"]
    admin = await asyncpg.connect(environment["TOLLBOOK_POSTGRES"])
    books = await Books.opened(admin, dsn, ("acme", "burner", "jumper"))
    path = tmp_path / "alerts.yaml"
    path.write_text(f"webhooks: [{{name: ops, url: '{receiver.url}', secret: {SECRET}}}]\n{RULES}")
    books.watch = Watch(alert_rules.read(str(path)))
    db = await database.connect(dsn)
    await books.watch.prepare(db)
    await db.close()
    yield Desk(books, admin, dsn, path)
    await admin.close()


def tokens(dollars: str) -> int:
    whole, _, cents = dollars.partition(".")
    return (int(whole) * 100 + int((cents + "00")[:2])) * 10**10 // TOKEN_PICO + 1


async def test_each_kind_fires_once_for_each_crossing(desk: Desk) -> None:
    books = desk.books
    await books.grant("acme", 6 * 10**12)
    for number in range(4):
        await books.charge("acme", f"a{number}", tokens("1"))
    # 6 - 4 x 1 is below 5 once, and a day's 3 were passed once.
    assert await desk.alerts() == [("low", "acme"), ("spent", "acme")]
    await books.grant("acme", 10 * 10**12)
    await books.charge("acme", "b", tokens("8"))
    await books.charge("acme", "c", tokens("3"), make.T0_US + 24 * HOUR_US)
    assert (await desk.alerts())[2:] == [("low", "acme"), ("spent", "acme")]

    await books.grant("burner", 100 * 10**12)
    await books.charge("burner", "d", tokens("1"))
    # 90 are left of which 20 went in this hour: they do not last for four more of these.
    await books.charge("burner", "e", tokens("20"))
    await books.charge("burner", "f", tokens("1"))
    assert ("fast", "burner") in await desk.alerts()
    assert (await desk.alerts()).count(("fast", "burner")) == 1

    await books.grant("jumper", 100 * 10**12)
    for hour in range(24):
        await books.charge("jumper", f"h{hour}", tokens("0.10"), make.T0_US + hour * HOUR_US)
    assert ("jump", "jumper") not in await desk.alerts()
    for part in range(3):
        await books.charge("jumper", f"j{part}", tokens("0.80"), make.T0_US + 24 * HOUR_US)
    assert (await desk.alerts()).count(("jump", "jumper")) == 1

    # Of an account that nobody made, under a name that no database takes: it stops nothing.
    await books.charge("no\x00body", "n", 1)
    for number in range(3):
        await books.charge("jumper", f"u{number}", 1, make.T0_US - 10 * HOUR_US)
    assert (await desk.alerts()).count(("unpriced", "jumper")) == 1


async def test_what_is_read_again_raises_nothing_and_a_changed_rule_begins_anew(
    desk: Desk,
) -> None:
    books = desk.books
    await books.grant("acme", 10 * 10**12)
    await books.charge("acme", "a", tokens("4"))
    assert await desk.alerts() == [("spent", "acme")]
    # As when the tables are emptied and the logs are read again.
    await desk.admin.execute("TRUNCATE alert_window")
    await desk.admin.execute("UPDATE alert_seen SET size = size + 1")
    await books.charge("acme", "b", tokens("4"))
    assert await desk.alerts() == [("spent", "acme")]
    changed = desk.path.read_text().replace('day, amount: "3"', 'day, amount: "9"')
    late = '  - {id: late, kind: spent, window: day, amount: "1"}\n'
    desk.path.write_text(changed + late)
    books.watch = Watch(alert_rules.read(str(desk.path)))
    db = await database.connect(desk.dsn)
    await books.watch.prepare(db)
    await db.close()
    await desk.admin.execute("UPDATE alert_seen SET size = size - 1")
    await books.charge("acme", "c", tokens("0.50"))
    assert await desk.alerts() == [("spent", "acme"), ("low", "acme")]
    await books.charge("acme", "d", tokens("1"))
    # What was so before a rule was set is not told.
    assert ("late", "acme") not in await desk.alerts()
    # The same day, and so the same alert: it was told already.
    assert (await desk.alerts()).count(("spent", "acme")) == 1


async def test_an_alert_is_told_again_until_it_is_taken_with_the_same_id_and_a_good_signature(
    desk: Desk, receiver: Receiver
) -> None:
    answers = {1: 500, 2: 307, 3: 404}
    receiver.status = lambda count: answers.get(count, 204)
    await desk.books.grant("acme", 6 * 10**12)
    await desk.books.charge("acme", "a", tokens("2"))
    webhooks = alert_rules.read(str(desk.path)).webhooks
    pool = await database.open_pool(desk.dsn, 1, asyncio.Event())
    telling = asyncio.ensure_future(Webhooks(pool, webhooks).run())
    try:
        await desk.until_told()
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        pool.terminate()
    assert len(receiver.got) == 4
    assert len(set(receiver.ids())) == 1
    for headers, body in receiver.got:
        assert body == receiver.got[0][1]
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        key = b64decode(SECRET.removeprefix("whsec_"))
        expected = b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
    told = json.loads(receiver.got[0][1])
    assert told["type"] == "tollbook.alert.balance_below"
    assert told["data"]["account_id"] == "acme"
    assert told["data"]["alert_id"] == receiver.ids()[0]
    assert int(told["data"]["value_pico"]) == 6 * 10**12 - tokens("2") * TOKEN_PICO
    assert told["data"]["threshold_pico"] == str(5 * 10**12)


async def test_a_teller_killed_over_an_attempt_loses_nothing(
    desk: Desk, receiver: Receiver
) -> None:
    hang = threading.Event()

    def status(count: int) -> int:
        if count == 1:
            hang.wait(120)
        return 204

    receiver.status = status
    await desk.books.grant("acme", 6 * 10**12)
    await desk.books.charge("acme", "a", tokens("4"))
    command = (sys.executable, "-m", "tests.integration.webhook_process", desk.dsn, str(desk.path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    first = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        assert await asyncio.to_thread(receiver.arrived.wait, 120)
    finally:
        first.kill()
        await first.wait()
    second = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        await desk.until_told()
    finally:
        hang.set()
        second.kill()
        await second.wait()
    # Both alerts, and what the first had under way again: by its id the receiver knows it.
    rows = await desk.admin.fetch("SELECT alert_id FROM alert")
    assert set(receiver.ids()) == {row["alert_id"] for row in rows}
    assert len(rows) == 2
