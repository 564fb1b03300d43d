"""The laws of the fold from logs to money."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.pricing import builders as make

from kernel import leaf as leaves
from pricing.domain import books
from pricing.domain.digest import balances_digest
from pricing.domain.projection import Projection
from pricing.domain.state import Effects, Use, Used
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.usage.v1 import usage_pb2 as usage

LOG = "usage-0"


class Books:
    """A projection and the balances its effects add up to."""

    def __init__(self) -> None:
        self.projection = Projection()
        self.balances: dict[books.BalanceKey, int] = {}
        self.used: dict[Use, Used] = {}

    def take(self, effects: Effects) -> Effects:
        books.apply(self.balances, effects.postings)
        for use, used in effects.used.items():
            older = self.used.get(use)
            self.used[use] = used if older is None else older.plus(used)
        return effects

    def control(self, raw: bytes) -> Effects:
        return self.take(self.projection.apply_control(self.projection.control.size, raw))

    def usage(self, first: int, pin: int, *data: bytes) -> Effects:
        return self.take(self.projection.apply_usage(LOG, first, pin, data))

    def available(self, account_id: str = "acme") -> int:
        return self.balances.get((books.customer(account_id), "USD"), 0)

    def digest(self) -> bytes:
        waiting: dict[str, int] = {}
        for entry in self.projection.suspense.values():
            waiting[entry.event.account_id] = waiting.get(entry.event.account_id, 0) + 1
        return balances_digest(self.balances, waiting)


def opened() -> Books:
    state = Books()
    state.control(make.account(0))
    state.control(make.card(1))
    state.control(make.grant(2, "g1", 10**12))
    return state


def test_a_request_is_charged_by_its_leaves() -> None:
    state = opened()
    state.usage(0, 3, make.event(0, plain=1_000_000, cached=1_000_000, output=1_000_000))
    expected = Fraction("0.15") + Fraction("0.075") + Fraction("0.60")
    assert 10**12 - state.available() == expected * 10**12


def test_duplicates_conflicts_and_rejected_records_cost_nothing() -> None:
    state = opened()
    for position, disposition in enumerate(
        (
            ledger.DISPOSITION_DUPLICATE,
            ledger.DISPOSITION_CONFLICT,
            ledger.DISPOSITION_REJECTED,
        )
    ):
        value = leaves.decode(make.event(position, output=5)).value
        state.usage(position, 3, make.entry(value, position, disposition))
    assert state.available() == 10**12


def test_usage_without_a_price_waits_and_is_charged_when_a_card_prices_it() -> None:
    state = Books()
    state.control(make.account(0))
    effects = state.usage(0, 1, make.event(0, output=100))
    assert len(effects.suspended) == 1
    assert state.available() == 0
    released = state.control(make.card(1))
    assert len(released.released) == 1
    assert state.available() == -100 * 600_000
    assert not state.projection.suspense


def test_tokens_in_doubt_wait_until_a_card_says_what_they_cost() -> None:
    """An engine's lie about its usage: what is sure is charged, the rest is nobody's yet."""
    state = opened()
    record = usage.UsageRecord.FromString(leaves.decode(make.event(0, output=10)).value)
    event = usage.UsageEvent.FromString(record.usage_event)
    event.quantities.add(unit=usage.UNIT_DISPUTED_TOKEN, amount=7)
    record.usage_event = event.SerializeToString()
    before = state.available()
    state.usage(0, 3, make.entry(record.SerializeToString(), 0))
    assert before - state.available() == 10 * 600_000
    assert len(state.projection.suspense) == 1
    # The operator looked: they are not charged.
    waived = make.CARD.replace("card: standard", "card: disputes").split("lines:")[0]
    state.control(make.card(3, f"{waived}lines:\n  - {{id: d, unit: disputed_token, price: 0}}\n"))
    assert not state.projection.suspense
    assert before - state.available() == 10 * 600_000


def test_an_adapter_without_a_line_pays_its_base_models_price() -> None:
    state = opened()
    state.usage(0, 3, make.event(0, model="tiny-support", base_model="tiny", output=10))
    assert 10**12 - state.available() == 10 * 600_000


def test_a_lost_engine_charges_what_was_delivered() -> None:
    state = opened()
    state.usage(0, 3, make.event(0, output=10, undelivered=4, outcome=usage.OUTCOME_ENGINE_LOST))
    assert 10**12 - state.available() == 6 * 600_000


def test_a_repeated_grant_counts_once() -> None:
    state = opened()
    effects = state.control(make.grant(3, "g1", 10**12))
    assert effects.ignored
    assert state.available() == 10**12


def test_the_card_in_force_at_the_events_time_applies() -> None:
    state = opened()
    dearer = make.CARD.replace("2026-01-01", "2026-02-01").replace("0.60", "6.00")
    state.control(make.card(3, dearer, version=2))
    february_us = make.T0_US + 31 * 86_400 * 1_000_000
    state.usage(0, 4, make.event(0, output=1, time_us=february_us - 1))
    assert 10**12 - state.available() == 600_000
    state.usage(1, 4, make.event(1, output=1, time_us=february_us))
    assert 10**12 - state.available() == 6_600_000


usages = st.lists(
    st.tuples(
        st.integers(0, 5_000), st.integers(0, 5_000), st.integers(0, 5_000), st.sampled_from("ab")
    ),
    max_size=30,
)


@given(usages, st.lists(st.integers(1, 7), min_size=1, max_size=30), st.integers(0, 2))
def test_batches_and_interleaving_change_no_unit(
    events: list[tuple[int, int, int, str]], sizes: list[int], early: int
) -> None:
    # `b` has no price until the last control record; every order of reading agrees.
    late = make.CARD.replace("card: standard", "card: late").replace("model: tiny", "model: b")
    data = [
        make.event(
            position, plain=plain, cached=cached, output=output, model="tiny" if m == "a" else "b"
        )
        for position, (plain, cached, output, m) in enumerate(events)
    ]
    whole = opened()
    if data:
        whole.usage(0, 3, *data)
    whole.control(make.card(3, late))

    parts = opened()
    at = 0
    for index in range(len(data)):
        if at >= len(data):
            break
        if index == early:
            parts.control(make.card(3, late))
        size = sizes[index % len(sizes)]
        parts.usage(at, 3, *data[at : at + size])
        at += size
    if parts.projection.control.size == 3:
        parts.control(make.card(3, late))
    assert parts.digest() == whole.digest()
    # What usage reports and spend limits are made of, too.
    assert parts.used == whole.used
    charged = whole.balances.get((books.revenue("acme"), "USD"), 0)
    assert sum(used.amount_pico for used in whole.used.values()) == charged
    assert sum(whole.balances.values()) == 0
    assert whole.available() <= 10**12


@given(usages)
def test_charges_equal_an_exact_reference(events: list[tuple[int, int, int, str]]) -> None:
    state = opened()
    expected = Fraction(0)
    for position, (plain, cached, output, _) in enumerate(events):
        state.usage(position, 3, make.event(position, plain=plain, cached=cached, output=output))
        expected += (
            plain * Fraction("0.15") + cached * Fraction("0.075") + output * Fraction("0.60")
        ) / 10**6
    assert 10**12 - state.available() == expected * 10**12


TIERED_OUT = """
card: later
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - id: out
    match: {model: long, direction: out}
    per: 1_000_000
    price: 1.00
    tiers: {by: context_length, mode: whole_request, steps: [{over: 100, price: 5.00}]}
"""


def test_a_leaf_that_waited_is_priced_by_the_whole_context() -> None:
    """Its prompt had a price before and waits no more; it is of the context all the same."""
    state = opened()
    prompt = make.CARD.replace("card: standard", "card: prompt").replace(
        "model: tiny", "model: long"
    )
    only_in = "\n".join(line for line in prompt.splitlines() if "tiny-out" not in line)
    state.control(make.card(3, only_in))
    state.usage(0, 4, make.event(0, model="long", plain=101, output=10))
    assert len(state.projection.suspense) == 1
    before = state.available()
    state.control(make.card(4, TIERED_OUT))
    assert not state.projection.suspense
    assert before - state.available() == 10 * 5_000_000
