"""Exhibit 20: overflowing or negative usage credited the user (GHSA-8r8v-xf7q-rcpr, octopus#243).

The ledger's part of it is beside this. Here no usage raises a balance, also if a ledger were to let
anything through: what is charged is taken from the account, and what is no amount is ignored whole.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.integration.pricing_world import World
from tests.museum.prices import card
from tests.unit.pricing import builders as make

from kernel.clock import timestamp_of
from pricing.domain import books
from pricing.domain.events import MAX_QUANTITY
from pricing.domain.replay import Replay
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = [pytest.mark.museum]

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
NEAR = st.sampled_from(
    [0, 1, -1, MAX_QUANTITY, MAX_QUANTITY + 1, (1 << 63) - 1, -(1 << 63), 1 << 32, 1 << 31]
)
AMOUNT = st.one_of(st.integers(0, 1_000), NEAR, INT64)
CREDIT_PICO = 10**30


def event(event_id: str, amounts: list[tuple[int, int]], model: str = "tiny") -> usage.UsageEvent:
    """Output tokens as they are said, sane or not: (amount, undelivered)."""
    made = usage.UsageEvent(
        event_id=event_id,
        account_id="acme",
        served_model=model,
        outcome=usage.OUTCOME_COMPLETE,
        event_time=timestamp_of(make.T0_US),
    )
    for amount, undelivered in amounts:
        made.quantities.add(
            unit=usage.UNIT_TOKEN,
            direction=usage.DIRECTION_OUT,
            amount=amount,
            undelivered_amount=undelivered,
        )
    return made


def leaf(position: int, made: usage.UsageEvent) -> bytes:
    record = usage.UsageRecord(
        stream_id="s", stream_seq=position, usage_event=made.SerializeToString()
    )
    return make.entry(record.SerializeToString(), position)


@given(st.lists(st.lists(st.tuples(AMOUNT, AMOUNT), max_size=4), min_size=1, max_size=12))
@example([[(-5, 0)], [((1 << 63) - 1, 0), ((1 << 63) - 1, 0)], [(10, -10)], [(5, 6)]])
def test_whatever_a_log_says_was_used_no_balance_rises(
    said: list[list[tuple[int, int]]],
) -> None:
    replay = Replay()
    for position, raw in enumerate(
        (make.card(0), make.account(1), make.grant(2, "g", CREDIT_PICO))
    ):
        replay.apply_control(position, raw)
    mine = books.customer("acme"), "USD"
    before = replay.balances[mine]
    for position, amounts in enumerate(said):
        made = event(f"e{position}", amounts)
        replay.apply_usage("usage-0", position, 3, [leaf(position, made)])
        after = replay.balances[mine]
        assert after <= before
        sane = all(0 <= undelivered <= amount <= MAX_QUANTITY for amount, undelivered in amounts)
        if not sane:
            # None of it is charged, also not those of its amounts that could be.
            assert after == before
            assert (replay.ignored[-1].log, replay.ignored[-1].position) == ("usage-0", position)
        before = after
        assert sum(replay.balances.values()) == 0


@pytest.mark.integration
async def test_the_running_service_charges_what_is_sane_and_nothing_else(world: World) -> None:
    await world.open("m20")
    await world.publish(card("m20", "m20-model", "1"))
    for number, (amount, undelivered) in enumerate(
        [(-1_000, 0), (-(1 << 63), 0), ((1 << 63) - 1, 0), (MAX_QUANTITY + 1, 0), (5, 6), (5, -5)]
    ):
        made = event(f"m20-bad-{number}", [(amount, undelivered)], "m20-model")
        made.account_id = "m20"
        await world.send("m20", made)
    wait_for = await world.recorded()
    untouched = (await world.balance("m20", wait_for)).balance
    assert int(untouched.available.amount_pico) == 5 * 10**12
    assert untouched.usage.requests == 0
    # What is sane is charged after them all the same.
    event_id = await world.use("m20", model="m20-model", plain=7, priced=False)
    charged = (await world.balance("m20", event_id=event_id)).balance
    assert int(charged.available.amount_pico) == 5 * 10**12 - 7 * 10**6
