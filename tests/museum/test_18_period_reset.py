"""Budgets were reset by a timer, and what came around midnight counted twice or never:
litellm#29576, #34733.

Here a window is derived from the events' own time. 1,000 charges at once, and 1,000
holds at a limit at once, across midnights, changes of clocks and a change of the
limit's zone sum exactly.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import datetime
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from tests.integration.pricing_books import Books, hold_doors
from tests.integration.pricing_world import World
from tests.integration.replicas import replicas
from tests.museum.prices import card
from tests.unit.pricing import builders as make

from kernel import errors
from kernel.clock import timestamp_of
from pricing.adapters.hold_ops import Reserving
from pricing.domain import windows
from pricing.domain.holds import Ask, hold_id_of
from tollbook.pricing.v1 import accounts_pb2, holds_pb2, pricing_pb2, reports_pb2
from tollbook.stack import Stack

pytestmark = [pytest.mark.museum, pytest.mark.integration]

BERLIN = "Europe/Berlin"
NEW_YORK = "America/New_York"
HOUR_US = 3_600_000_000
TOKEN_PICO = 10**6
CHARGE_PICO = 600_000
"""Of an output token, by the card that `Books` begin with."""


def instant(text: str, zone: str = BERLIN) -> int:
    return windows.instant_us(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)))


async def set_limit(world: World, change_id: str, amount_pico: int, zone: str) -> None:
    day = accounts_pb2.SPEND_WINDOW_DAY
    made = make.limit("m18", day, amount_pico, change_id=change_id, time_zone=zone)
    await world.control.SetLimit(pricing_pb2.SetLimitRequest(limit=made), timeout=30)


async def by_day(world: World, from_us: int, to_us: int, zone: str) -> dict[int, int]:
    """What was charged in each day, by its first instant."""
    answer = await world.pricing.GetUsage(
        reports_pb2.GetUsageRequest(
            account_id="m18",
            from_time=timestamp_of(from_us),
            to_time=timestamp_of(to_us),
            bucket=accounts_pb2.SPEND_WINDOW_DAY,
            time_zone=zone,
        ),
        timeout=30,
    )
    return {row.bucket_time.seconds * 10**6: int(row.charge.amount_pico) for row in answer.rows}


async def test_a_thousand_charges_across_midnights_sum_exactly(world: World) -> None:
    await world.open("m18")
    await world.publish(card("m18", "m18-model", "1"))
    await set_limit(world, "m18-1", 10**12, BERLIN)
    dice = random.Random(18)
    # Around an ordinary midnight, and around the two nights in which clocks are changed.
    nights = [instant(f"{day}T00:00:00") for day in ("2026-02-10", "2026-03-29", "2026-10-25")]
    events = [
        (dice.choice(nights) + dice.randrange(-30 * HOUR_US, 30 * HOUR_US), dice.randint(1, 9))
        for _ in range(1_000)
    ]
    expected: dict[str, dict[int, int]] = {zone: {} for zone in (BERLIN, "America/New_York")}
    for at_us, tokens in events:
        for zone, days in expected.items():
            # The reference asks the calendar, not the windows.
            midnight = datetime.fromtimestamp(at_us // 10**6, ZoneInfo(zone)).replace(
                hour=0, minute=0, second=0, microsecond=0, fold=0
            )
            start = windows.instant_us(midnight)
            days[start] = days.get(start, 0) + tokens * TOKEN_PICO
    sent = await asyncio.gather(
        *(
            world.use("m18", model="m18-model", output=tokens, at_us=at_us, priced=False)
            for at_us, tokens in events
        )
    )
    for event_id in sent[-20:]:
        await world.balance("m18", event_id=event_id)
    await world.balance("m18", wait_for=await world.recorded())
    first, end = min(nights) - 40 * HOUR_US, max(nights) + 40 * HOUR_US
    for zone, days in expected.items():
        assert await by_day(world, first, end, zone) == days


async def test_a_limit_holds_on_each_side_of_a_windows_edge_whatever_server_is_asked(
    world: World,
) -> None:
    """A thousand ask three servers at once, of both sides of the edge of a minute to come."""
    await world.open("m18-now")
    made = make.limit("m18-now", accounts_pb2.SPEND_WINDOW_MINUTE, 30)
    await world.control.SetLimit(pricing_pb2.SetLimitRequest(limit=made), timeout=30)
    edge_us = windows.minute_us(windows.instant_us(datetime.now(ZoneInfo("UTC")))) + 5 * 60 * 10**6
    async with replicas(world.stack) as servers:

        async def ask(number: int) -> holds_pb2.ReserveResponse | None:
            at_us = edge_us + (number % 2000 - 1000) * 20_000
            return await servers.reserve(
                "m18-now", f"m18-{number}", 1, 600_000, event_time=timestamp_of(at_us)
            )

        answers = await asyncio.gather(*(ask(number) for number in range(0, 2_000, 2)))
        sides = [
            answer.hold.event_time.ToMicroseconds() >= edge_us
            for answer in answers
            if answer is not None
        ]
        # Exactly the limit on each side of the edge, however they came.
        assert (sides.count(False), sides.count(True)) == (30, 30)


def midnight_of(at_us: int, zone: str) -> int:
    """The first instant of a day, by the calendar and not by what is tested."""
    clock = datetime.fromtimestamp(at_us // 10**6, ZoneInfo(zone))
    return windows.instant_us(clock.replace(hour=0, minute=0, second=0, microsecond=0, fold=0))


async def test_a_thousand_at_a_limit_of_days_across_midnights_changes_of_clocks_and_of_zone(
    pricing_tables: Stack,
) -> None:
    """Three doors on one database decide, as three servers would, of nights that no clock of a
    machine need come to: an ordinary one, and those in which the clocks are changed.
    """
    environment = pricing_tables.environment()
    dsn = environment["TOLLBOOK_PRICING_POSTGRES"]
    admin = await asyncpg.connect(environment["TOLLBOOK_POSTGRES"])
    books = await Books.opened(admin, dsn, ("m18",))
    dice = random.Random(81)
    nights = [instant(f"{day}T00:00:00") for day in ("2026-02-10", "2026-03-29", "2026-10-25")]
    spent: dict[str, dict[int, int]] = {BERLIN: {}, NEW_YORK: {}}
    try:
        async with hold_doors(dsn, 3) as doors:
            await books.grant("m18", 10_000 * CHARGE_PICO)
            for number, (zone, tokens) in enumerate(((BERLIN, 60), (NEW_YORK, 90))):
                day_window, most_pico = accounts_pb2.SPEND_WINDOW_DAY, tokens * CHARGE_PICO
                made = make.limit("m18", day_window, most_pico, "days", time_zone=zone)
                await books.change(limit_set=made)
                times_us = [
                    dice.choice(nights) + dice.randrange(-30 * HOUR_US, 30 * HOUR_US)
                    for _ in range(1_000)
                ]

                async def ask(at: int, at_us: int, turn: int = number) -> tuple[str, int] | None:
                    event_id = f"{turn}-{at}"
                    hold = Ask(hold_id_of("m18", event_id), "m18", "", "", CHARGE_PICO, at_us)
                    try:
                        await doors[at % 3].reserve(Reserving(hold, "USD", 600_000_000))
                    except errors.QuotaExceeded:
                        return None
                    return event_id, at_us

                asks = (ask(at, at_us) for at, at_us in enumerate(times_us))
                answers = await asyncio.gather(*asks)
                admitted = [answer for answer in answers if answer is not None]
                asked = Counter(midnight_of(at_us, zone) for at_us in times_us)
                # Exactly what each day has room for, by all that was spent in it under either zone.
                assert Counter(midnight_of(at_us, zone) for _, at_us in admitted) == {
                    day: room
                    for day, count in asked.items()
                    if (room := min(count, max(0, tokens - spent[zone].get(day, 0))))
                }
                for event_id, at_us in admitted:
                    await books.charge("m18", event_id, 1, at_us)
                    for clock, days in spent.items():
                        day = midnight_of(at_us, clock)
                        days[day] = days.get(day, 0) + 1
            rows = await admin.fetch("SELECT * FROM limit_spent WHERE limit_id = 'days'")
            assert {row["window_start_us"]: int(row["amount_pico"]) for row in rows} == {
                day: tokens * CHARGE_PICO for day, tokens in spent[NEW_YORK].items()
            }
    finally:
        await admin.close()
