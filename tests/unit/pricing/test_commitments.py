"""The least of a month: owed once the log says it is over, and lessened by what comes late."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.pricing import builders as make

from kernel import leaf as leaves
from kernel.clock import timestamp_of
from pricing.domain import books
from pricing.domain.replay import Replay
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.pricing.v1 import commitment_pb2, control_pb2

LOG = "usage-0"
COMMITTED = make.CARD.replace(
    "currency: USD", "currency: USD\naccounts: [acme, idle]\ncommitment: {minimum: 6, maximum: 60}"
)
UNIT_PICO = 600_000
MILLION = 1_000_000
FEBRUARY_MS = 1_770_000_000_000


def closing(position: int, period: str = "2026-01", at_ms: int = FEBRUARY_MS) -> bytes:
    record = control_pb2.ControlRecord(
        recorded_time=timestamp_of(at_ms * 1000),
        actor="test",
        commitment_closed=commitment_pb2.CommitmentClosed(card_id="standard", period=period),
    )
    return leaves.encode(
        ledger.DISPOSITION_ACCEPTED, 0, position, at_ms, b"key", record.SerializeToString()
    )


def opened() -> Replay:
    replay = Replay()
    for position, raw in enumerate(
        (make.account(0), make.account(1, "idle"), make.card(2, COMMITTED))
    ):
        assert not replay.apply_control(position, raw).ignored
    return replay


def charged(replay: Replay, account: str) -> int:
    return replay.balance(books.revenue(account), "USD")


def test_a_closed_month_costs_at_least_the_minimum_and_an_idle_account_owes_it() -> None:
    replay = opened()
    replay.apply_usage(LOG, 0, 3, [make.event(0, output=4 * MILLION)])
    assert charged(replay, "acme") == 4 * MILLION * UNIT_PICO
    effects = replay.apply_control(3, closing(3))
    assert {posting.kind for posting in effects.postings} == {books.COMMITMENT}
    assert charged(replay, "acme") == charged(replay, "idle") == 6 * 10**12
    # 2.40 are paid; what is late lessens the 3.60 that the minimum added, and no more is owed.
    replay.apply_usage(LOG, 1, 3, [make.event(1, output=5 * MILLION)])
    assert charged(replay, "acme") == 6 * 10**12
    replay.apply_usage(LOG, 2, 3, [make.event(2, output=2 * MILLION)])
    assert charged(replay, "acme") == 11 * MILLION * UNIT_PICO


def test_nothing_is_charged_beyond_the_maximum() -> None:
    replay = opened()
    replay.apply_usage(LOG, 0, 3, [make.event(0, output=99 * MILLION)])
    replay.apply_usage(LOG, 1, 3, [make.event(1, output=99 * MILLION)])
    assert charged(replay, "acme") == 60 * 10**12
    assert sum(replay.balances.values()) == 0


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (closing(3, "2026-02"), "is not over"),
        (closing(3, "2025-12"), "no version of it in that month"),
        (closing(3, "2026-13"), "is written as 2026-01"),
    ],
)
def test_a_month_that_cannot_be_closed_is_not(raw: bytes, why: str) -> None:
    replay = opened()
    effects = replay.apply_control(3, raw)
    assert [why in entry.why for entry in effects.ignored] == [True]
    assert not effects.postings


def test_a_month_is_closed_once() -> None:
    replay = opened()
    replay.apply_control(3, closing(3))
    assert replay.apply_control(4, closing(4)).ignored
    assert charged(replay, "idle") == 6 * 10**12


@given(
    st.lists(st.integers(0, 40), max_size=6),
    st.integers(0, 6),
    st.lists(st.integers(1, 3), min_size=1),
)
def test_when_a_reader_meets_the_closing_changes_no_unit(
    outputs: list[int], closed_after: int, sizes: list[int]
) -> None:
    data = [make.event(index, output=n * MILLION) for index, n in enumerate(outputs)]
    whole = opened()
    if data:
        whole.apply_usage(LOG, 0, 3, data)
    whole.apply_control(3, closing(3))
    parts = opened()
    at = 0
    for steps, size in enumerate(itertools.cycle(sizes)):
        if steps == closed_after:
            parts.apply_control(3, closing(3))
        if at >= len(data) and steps >= closed_after:
            break
        if data[at : at + size]:
            parts.apply_usage(LOG, at, 3, data[at : at + size])
            at += len(data[at : at + size])
    assert parts.digest() == whole.digest()
    assert parts.projection.commitments.months == whole.projection.commitments.months
    assert charged(whole, "acme") == max(
        6 * 10**12, min(60 * 10**12, sum(outputs) * MILLION * UNIT_PICO)
    )
