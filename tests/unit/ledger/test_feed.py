"""The feed's readings: one after the other, shared by who asks meanwhile, no question too many."""

from __future__ import annotations

import asyncio
from typing import Any

from ledger.adapters.feed import Feed


class Database:
    """A pool that answers the feed's two queries for one log, when it is let."""

    def __init__(self) -> None:
        self.size = 0
        self.pins: list[tuple[int, int]] = []
        self.heads_asked = self.pins_asked = 0
        self.looked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        if "log_pin" in query:
            self.pins_asked += 1
            return [pin for pin in self.pins if pin[0] > arguments[1]]
        self.heads_asked += 1
        row = {
            "log_id": 100,
            "name": "usage-0",
            "epoch": 1,
            "next_offset": self.size,
            "size": self.size,
            "root": bytes(32),
            "control_size": self.pins[-1][1] if self.pins else 0,
            "accepted": self.size,
            "duplicate": 0,
            "conflict": 0,
            "rejected": 0,
            "signed_size": None,
            "signed_root": None,
            "note": None,
        }
        self.looked.set()
        await self.open.wait()
        return [row]

    def grow(self, size: int, control_size: int) -> None:
        if not self.pins or self.pins[-1][1] != control_size:
            self.pins.append((self.size, control_size))
        self.size = size


async def test_pins_are_asked_for_only_when_there_is_a_new_one() -> None:
    database = Database()
    feed = Feed(database, "")
    database.grow(10, 0)
    await feed.refresh()
    for size in (20, 30, 40):
        database.grow(size, 0)
        await feed.refresh()
    assert database.pins_asked == 1
    database.grow(50, 7)
    await feed.refresh()
    database.grow(60, 7)
    await feed.refresh()
    assert database.pins_asked == 2
    view = feed.view("usage-0")
    assert view.size == 60
    assert (view.pin_at(39), view.pin_at(40), view.pin_at(59)) == (
        (0, 40),
        (7, 1 << 62),
        (7, 1 << 62),
    )


async def test_who_asks_during_a_reading_gets_one_that_began_afterwards() -> None:
    database = Database()
    feed = Feed(database, "")
    database.grow(1, 0)
    database.open.clear()
    first = asyncio.create_task(feed.refresh())
    await database.looked.wait()
    # The first reading has looked already; what comes now it cannot know.
    database.grow(2, 0)
    later = [asyncio.create_task(feed.refresh()) for _ in range(50)]
    await asyncio.sleep(0)
    database.open.set()
    await asyncio.gather(first, *later)
    assert feed.view("usage-0").size == 2
    assert database.heads_asked == 2
