"""Sums drifted, because money was a float: litellm#8867, otari#691.

Here the sum of all receipts, each rated alone by the plain rules, is the sum of
all postings and of all balances, to the last pico-unit. TOLLBOOK_MUSEUM_EVENTS
says of how many events; ordinarily few, so that the exhibit takes seconds.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter

import asyncpg
import pytest
from bench import usage_load
from tests.integration.pricing_world import TIMEOUT_S, World, again

from pricing.domain.events import read_event
from pricing.domain.rating import rate_event
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import control_pb2, pricing_pb2

EVENTS = int(os.environ.get("TOLLBOOK_MUSEUM_EVENTS", "20000"))
# One by one, by the plain rules, and with all else at work beside: some 20,000 a second.
ALL_TIMEOUT_S = TIMEOUT_S + EVENTS / 5_000
pytestmark = [
    pytest.mark.museum,
    pytest.mark.integration,
    pytest.mark.timeout(2 * ALL_TIMEOUT_S),
]

# Prices that no binary fraction holds, down to a single pico-unit.
CARD = """
card: m25
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: plain, match: {base_model: tiny-qwen, direction: in}, per: 1_000_000, price: 0.100001}
  - {id: read, match: {base_model: tiny-qwen, direction: in, cache_use: read},
      price: 0.000000000001}
  - {id: out, match: {base_model: tiny-qwen, direction: out}, per: 1000, price: 0.000333333}
"""


async def test_receipts_and_postings_have_one_sum(world: World) -> None:
    names = [f"account-{number:04d}" for number in range(usage_load.ACCOUNTS)]
    await world.publish(CARD)
    await asyncio.gather(
        *(
            world.append(
                f"m25-{name}",
                {"account_created": control_pb2.AccountCreated(account_id=name, currency="USD")},
            )
            for name in names
        )
    )
    environment = world.stack.environment()
    began = await world.sizes()
    partitions = int(environment["TOLLBOOK_PARTITIONS"])
    await usage_load.fill(
        world.stack.address("kafka"), environment["TOLLBOOK_TOPIC"], partitions, EVENTS, seed=25
    )
    sent = EVENTS // partitions
    wait_for = [
        pricing_pb2.LogPosition(log=f"usage-{number}", size=began[f"usage-{number}"] + sent)
        for number in range(partitions)
    ]
    await until(world, {one.log: one.size for one in wait_for})
    request = pricing_pb2.ListBalancesRequest(wait_for=wait_for)
    receipts = await receipts_pico(world, began, names[0])
    listed = await again(lambda: world.pricing.ListBalances(request, timeout=TIMEOUT_S))
    balances = Counter(
        {
            balance.account_id: int(balance.charged.amount_pico)
            for balance in listed.balances
            if balance.account_id in receipts
        }
    )
    postings = await postings_pico(environment["TOLLBOOK_POSTGRES"])
    assert sum(receipts.values()) > 0
    assert receipts == balances
    assert receipts == {name: postings[name] for name in receipts}


async def until(world: World, wanted: dict[str, int]) -> None:
    """Wait until the logs have these sizes."""
    deadline = time.monotonic() + ALL_TIMEOUT_S
    while True:
        sizes = await world.sizes()
        if all(sizes[log] >= size for log, size in wanted.items()):
            return
        assert time.monotonic() < deadline, f"{sizes} of {wanted}"
        await asyncio.sleep(0.1)


async def receipts_pico(world: World, began: dict[str, int], one: str) -> Counter[str]:
    """What each account's events come to, each event rated alone by the plain rules."""
    replay = await world.replay({"control": (await world.sizes())["control"]})
    state = replay.projection.control
    assert one in state.accounts
    found: Counter[str] = Counter()
    for log, size in (await world.sizes()).items():
        if not log.startswith("usage-"):
            continue
        request = ledger_pb2.ReadEventsRequest(
            log=log, from_position=began[log], to_position=size, max_batch=5000
        )
        async for answer in world.ledger.ReadEvents(request, timeout=ALL_TIMEOUT_S):
            catalogue = state.catalogue(answer.control_size)
            for position, raw in enumerate(answer.leaves, answer.first_position):
                event = read_event(position, raw)
                rated = rate_event(event, "USD", catalogue)
                assert all(part.priced is not None for part in rated)
                found[event.account_id] += sum(part.amount_pico for part in rated)
    return found


async def postings_pico(dsn: str) -> Counter[str]:
    """The sum of each account's charges, added up by the database."""
    db = await asyncpg.connect(dsn)
    try:
        rows = await db.fetch(
            "SELECT account_id, sum(amount_pico)::text AS pico FROM pricing.posting"
            " WHERE kind = 'usage' GROUP BY account_id"
        )
    finally:
        await db.close()
    return Counter({row["account_id"]: int(row["pico"]) for row in rows})
