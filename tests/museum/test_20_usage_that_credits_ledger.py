"""Exhibit 20: overflowing or negative usage credited the user (GHSA-8r8v-xf7q-rcpr, octopus#243).

Here no amount that is negative, overflows or is no number at all gets past the ledger: it is kept,
rejected, with its reason. What is accepted is between 0 and the largest sane amount.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integration.ledger_world import dispositions, ledger_world
from tests.unit.ledger import builders as make

from ledger.domain.columnar import read
from ledger.domain.columns import of_records
from ledger.domain.scan import ABSURD_QUANTITY, MAX_AMOUNT, NEGATIVE_QUANTITY, OK, scan
from tollbook.stack import Stack
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = [pytest.mark.museum]

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
_AMOUNT_FIELD = usage.Quantity.DESCRIPTOR.fields_by_name["amount"].number


def varint(value: int) -> bytes:
    """A protobuf varint of any size, also of more bits than the field has."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def sent(quantity: bytes) -> bytes:
    """A usable event but for this serialized Quantity."""
    event = make.event(quantities=[]).SerializeToString()
    number = usage.UsageEvent.DESCRIPTOR.fields_by_name["quantities"].number
    return make.wrap(event + varint(number << 3 | 2) + varint(len(quantity)) + quantity)


def amounts_of(value: bytes) -> list[int]:
    """What a reader of the event sees."""
    record = usage.UsageRecord.FromString(value)
    event = usage.UsageEvent.FromString(record.usage_event)
    return [n for item in event.quantities for n in (item.amount, item.undelivered_amount)]


@given(INT64, INT64)
def test_only_sane_amounts_are_usable(amount: int, undelivered: int) -> None:
    value = make.wrap(
        make.event(quantities=[make.quantity(amount, undelivered_amount=undelivered)])
    )
    reason = scan(value).reason
    assert (reason == OK) == (0 <= undelivered <= amount <= MAX_AMOUNT)
    if amount < 0 or undelivered < 0:
        assert reason == NEGATIVE_QUANTITY
    elif amount > MAX_AMOUNT:
        assert reason == ABSURD_QUANTITY
    # The compiled loops, which most records never leave, agree.
    reading = read(of_records([(0, 0, b"", value)]))
    assert bool(reading.usable[0]) == (reason == OK)


@given(st.integers(0, 1 << 200), st.binary(max_size=12))
def test_whatever_is_written_as_an_amount_no_reader_sees_a_negative_one(
    raw: int, rest: bytes
) -> None:
    """Also varints of more than 64 bits, and bytes that are anything."""
    base = make.quantity(0).SerializeToString()
    value = sent(base + varint(_AMOUNT_FIELD << 3) + varint(raw) + rest)
    if scan(value).reason == OK:
        assert all(0 <= amount <= MAX_AMOUNT for amount in amounts_of(value))


def test_a_float_is_no_amount() -> None:
    """NaN and infinity in the amount's place: its field is an integer, so there is nothing."""
    base = make.quantity(0).SerializeToString()
    for number in (float("nan"), float("inf"), -1.0):
        value = sent(base + varint(_AMOUNT_FIELD << 3 | 1) + struct.pack("<d", number))
        assert scan(value).reason != OK or amounts_of(value) == [0, 0]


@pytest.mark.integration
async def test_it_is_kept_and_rejected_by_the_running_ledger(ground: Stack, tmp_path: Path) -> None:
    bad = [-1, -(1 << 63), MAX_AMOUNT + 1, (1 << 63) - 1]
    values = [
        make.wrap(make.event(f"bad-{n}", quantities=[make.quantity(amount)]), n)
        for n, amount in enumerate(bad)
    ]
    good = make.wrap(make.event("good", quantities=[make.quantity(MAX_AMOUNT)]), len(bad))
    async with ledger_world(ground, tmp_path) as world:
        async with world.workforce():
            await world.put(0, *values, b'{"amount": NaN}', good)
            await world.check(complete=False)
        found = dispositions(await world.entries(0))
        assert found == ["REJECTED"] * (len(bad) + 1) + ["ACCEPTED"]
