"""Admission of holds against a naive model: plain lists and fractions, nothing shared with it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)
from tests.unit.pricing import builders as make

from kernel.clock import timestamp_of
from pricing.domain import quoting, windows
from pricing.domain.catalogue import Catalogue
from pricing.domain.credits import NEVER_US, Charge, Lot
from pricing.domain.dimensions import Context
from pricing.domain.holds import Ask, Standing, hold_id_of
from pricing.domain.projection import Projection
from pricing.domain.state import Limit
from tollbook.usage.v1 import usage_pb2 as usage

DAY_US = 86_400_000_000
NOON_US = make.T0_US + DAY_US // 2


@dataclass
class Hold:
    """A hold in the model."""

    amount: Fraction
    project: str
    key: str
    at_us: int


class Holds(RuleBasedStateMachine):
    """An account with two limits. A standing is made anew for each step, as the door makes it from
    its tables; the model beside it adds lists up.
    """

    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.granted = Fraction(0)
        self.credit_limit = Fraction(0)
        self.most_limit = Fraction(0)
        self.charged: list[Hold] = []
        self.open: dict[int, Hold] = {}
        self.count = 0
        self.limits = [
            Limit(0, "day", "acme", "", "", windows.DAY, "Europe/Berlin", 400),
            Limit(1, "key", "acme", "", "k1", windows.EVER, "UTC", 300),
        ]

    def standing(self) -> Standing:
        held = sum(int(hold.amount) for hold in self.open.values())
        balance = self.granted - sum(hold.amount for hold in self.charged)
        standing = Standing(
            "acme", "USD", int(balance), 0, int(self.credit_limit), tuple(self.limits)
        )
        for hold in self.open.values():
            ask = Ask("", "acme", hold.project, hold.key, int(hold.amount), hold.at_us)
            standing.hold(ask, int(hold.amount))
        assert standing.held_pico == held
        for done in self.charged:
            for limit in self.limits:
                if limit.covers(done.project, done.key):
                    start = windows.window_start_us(limit.window, limit.time_zone, done.at_us)
                    key = limit.limit_id, start
                    standing.spent[key] = standing.spent.get(key, 0) + int(done.amount)
        return standing

    def allowed(self, wanted: Hold) -> bool:
        everything = [*self.open.values(), *self.charged]
        if wanted.amount == 0:
            return True
        if sum(one.amount for one in everything) + wanted.amount > self.granted + self.credit_limit:
            return False
        day = windows.local(wanted.at_us, "Europe/Berlin").date()
        today = [
            one for one in everything if windows.local(one.at_us, "Europe/Berlin").date() == day
        ]
        if sum(one.amount for one in today) + wanted.amount > 400:
            return False
        with_key = [one for one in everything if one.key == "k1"]
        return wanted.key != "k1" or sum(one.amount for one in with_key) + wanted.amount <= 300

    @rule(amount=st.integers(1, 500))
    def grant(self, amount: int) -> None:
        self.granted += amount

    @rule(amount=st.integers(0, 100))
    def set_terms(self, amount: int) -> None:
        self.credit_limit = Fraction(amount)
        self.most_limit = max(self.most_limit, self.credit_limit)

    @rule(
        target=made,
        amount=st.integers(0, 250),
        key=st.sampled_from(("k1", "k2")),
        day=st.integers(0, 2),
        offset_us=st.integers(-DAY_US // 2, DAY_US // 2 - 1),
    )
    def reserve(self, amount: int, key: str, day: int, offset_us: int) -> int:
        wanted = Hold(Fraction(amount), "p", key, NOON_US + day * DAY_US + offset_us)
        ask = Ask("", "acme", "p", key, amount, wanted.at_us)
        refusals = self.standing().refusals(ask, amount)
        assert bool(refusals) != self.allowed(wanted), refusals
        self.count += 1
        if not refusals:
            self.open[self.count] = wanted
        # A refused hold is nothing: whoever has its number has no hold.
        return self.count

    @rule(hold=made, more=st.integers(1, 100))
    def extend(self, hold: int, more: int) -> None:
        if (older := self.open.get(hold)) is None:
            return
        ask = Ask("", "acme", older.project, older.key, int(older.amount) + more, older.at_us)
        wanted = Hold(Fraction(more), older.project, older.key, older.at_us)
        refusals = self.standing().refusals(ask, more)
        assert bool(refusals) != self.allowed(wanted)
        if not refusals:
            older.amount += more

    @rule(hold=consumes(made))
    def release(self, hold: int) -> None:
        self.open.pop(hold, None)

    @rule(hold=consumes(made), share=st.fractions(0, 1))
    @precondition(lambda self: self.open)
    def charge(self, hold: int, share: Fraction) -> None:
        """The event comes: it costs what was held, or less, and drops the hold at once."""
        if (older := self.open.pop(hold, None)) is not None:
            older.amount = Fraction(int(older.amount * share))
            self.charged.append(older)

    @invariant()
    def never_beyond_what_it_may(self) -> None:
        used = sum(one.amount for one in (*self.open.values(), *self.charged))
        assert used <= self.granted + self.most_limit
        assert all(one.amount >= 0 for one in self.open.values())


TestHolds = Holds.TestCase
TestHolds.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(
    st.lists(st.integers(1, 60), max_size=12),
    st.integers(0, 300),
    st.integers(0, 60),
)
def test_a_batch_never_admits_more_than_there_is_and_refuses_nobody_for_nothing(
    amounts: list[int], balance: int, credit_limit: int
) -> None:
    standing = Standing("acme", "USD", balance, 0, credit_limit)
    free = balance + credit_limit
    for amount in amounts:
        refusals = standing.refusals(Ask("", "acme", "", "", amount, 0), amount)
        assert bool(refusals) == (amount > free)
        if not refusals:
            standing.hold(Ask("", "acme", "", "", amount, 0), amount)
            free -= amount
    assert free >= 0


def test_credit_of_another_project_and_credit_that_ended_hold_nothing() -> None:
    lots = [Lot(0, 100, 0, "ends", "", 10), Lot(0, NEVER_US, 1, "mine", "a", 10)]
    standing = Standing("acme", "USD", 20, 0, 0, lots=lots, charges=[Charge(5, "a", 0)])
    assert standing.spendable_pico("a", 50) == 20
    assert standing.spendable_pico("b", 50) == 10
    assert standing.spendable_pico("b", 100) == 0
    assert standing.spendable_pico("a", 100) == 10
    # What `a` holds is taken from what ends sooner first: `b` has nothing left.
    standing.hold(Ask("", "acme", "a", "", 10, 50), 10)
    assert standing.spendable_pico("b", 60) == 0
    assert standing.spendable_pico("a", 60) == 10


def test_a_hold_has_one_id_for_its_event_and_no_other() -> None:
    assert hold_id_of("a", "bc") != hold_id_of("ab", "c")
    assert len(hold_id_of("acme", "\0" * 128)) == 32


# Quotes --------------------------------------------------------------------------------

CARD = """
card: {name}
currency: USD
effective_from: 2026-01-01T00:00:00Z
outcomes: {{complete: {rule}}}
lines:
  - {{id: in, match: {{model: tiny, direction: in, cache_use: none}}, per: 1, price: {plain}}}
  - {{id: read, match: {{model: tiny, direction: in, cache_use: read}}, per: 1, price: {read}}}
  - {{id: write, match: {{model: tiny, direction: in, cache_use: write}}, per: 1, price: {write}}}
  - {{id: out, match: {{model: tiny, direction: out}}, per: 1, price: {out}}}
  - {{id: why, match: {{model: tiny, direction: out, token_kind: reasoning}}, per: 1, price: {why}}}
"""
prices = st.integers(0, 50)


@example(1, 9, 1, 1, 1, "generated", [0, 9, 0], [0, 0], 0)
@example(1, 1, 9, 1, 1, "generated", [0, 0, 9], [0, 0], 0)
@example(1, 1, 1, 1, 9, "generated", [0, 0, 0], [0, 9], 0)
@given(
    prices,
    prices,
    prices,
    prices,
    prices,
    st.sampled_from(("generated", "delivered", "none")),
    st.lists(st.integers(0, 40), min_size=3, max_size=3),
    st.lists(st.integers(0, 40), min_size=2, max_size=2),
    st.integers(0, 20),
)
def test_a_quote_is_never_below_the_charge(
    plain: int,
    read: int,
    write: int,
    out: int,
    why: int,
    rule_name: str,
    into: list[int],
    outputs: list[int],
    slack: int,
) -> None:
    text = CARD.format(
        name="q", rule=rule_name, plain=plain, read=read, write=write, out=out, why=why
    )
    projection = Projection()
    projection.apply_control(0, make.account(0))
    projection.apply_control(1, make.card(1, text))
    event = usage.UsageEvent(
        event_id="e",
        account_id="acme",
        served_model="tiny",
        outcome=usage.OUTCOME_COMPLETE,
        event_time=timestamp_of(make.T0_US),
    )
    token = usage.UNIT_TOKEN
    for cache_use, amount in zip(
        (usage.CACHE_USE_NONE, usage.CACHE_USE_READ, usage.CACHE_USE_WRITE), into, strict=True
    ):
        event.quantities.add(
            unit=token, direction=usage.DIRECTION_IN, cache_use=cache_use, amount=amount
        )
    for kind, amount in zip(
        (usage.TOKEN_KIND_PLAIN, usage.TOKEN_KIND_REASONING), outputs, strict=True
    ):
        event.quantities.add(
            unit=token, direction=usage.DIRECTION_OUT, token_kind=kind, amount=amount
        )
    record = usage.UsageRecord(stream_id="s", usage_event=event.SerializeToString())
    effects = projection.apply_usage("usage-0", 0, 2, [make.entry(record.SerializeToString(), 0)])
    charged = sum(posting.amount_pico for posting in effects.postings)
    found = quoting.quote(
        quoting.Bound(
            Context("tiny", "tiny", "", "standard", ""), sum(into), sum(outputs) + slack, make.T0_US
        ),
        "acme",
        "USD",
        projection.control.catalogue(2),
    )
    assert found.amount_pico >= charged
    assert not found.unpriced


def test_a_quote_says_when_something_has_no_price() -> None:
    only_in = "\n".join(line for line in make.CARD.splitlines() if "tiny-out" not in line)
    projection = Projection()
    projection.apply_control(0, make.account(0))
    projection.apply_control(1, make.card(1, only_in))
    context = Context("tiny", "tiny", "", "standard", "")
    catalogue: Catalogue = projection.control.catalogue(2)
    bound = quoting.Bound(context, 10, 5, make.T0_US)
    assert quoting.quote(bound, "acme", "USD", catalogue) == quoting.Quote(10 * 150_000, True)
    assert not quoting.quote(bound._replace(output_tokens=0), "acme", "USD", catalogue).unpriced


def test_what_is_embedded_is_held_charged_and_counted_against_the_engine() -> None:
    """By its own price where a card has one, by that of any input where not."""
    own = make.CARD + (
        "  - {id: embed, match: {model: tiny, direction: in, cache_use: none,"
        " token_kind: embedding},"
        " per: 1_000_000, price: 7.00}\n"
    )
    charged = {}
    for name, text in (("plain", make.CARD), ("own", own)):
        projection = Projection()
        projection.apply_control(0, make.account(0))
        projection.apply_control(1, make.card(1, text))
        event = usage.UsageEvent(
            event_id="e",
            account_id="acme",
            served_model="tiny",
            outcome=usage.OUTCOME_COMPLETE,
            event_time=timestamp_of(make.T0_US),
            engine_id="engine",
        )
        event.quantities.add(
            unit=usage.UNIT_TOKEN,
            direction=usage.DIRECTION_IN,
            token_kind=usage.TOKEN_KIND_EMBEDDING,
            amount=1_000,
        )
        record = usage.UsageRecord(stream_id="s", usage_event=event.SerializeToString())
        effects = projection.apply_usage(
            "usage-0", 0, 2, [make.entry(record.SerializeToString(), 0)]
        )
        charged[name] = sum(posting.amount_pico for posting in effects.postings)
        context = Context("tiny", "tiny", "", "standard", "")
        bound = quoting.Bound(context, 1_000, 0, make.T0_US)
        found = quoting.quote(bound, "acme", "USD", projection.control.catalogue(2))
        assert found.amount_pico >= charged[name] > 0
        assert not found.unpriced
        assert effects.engines["engine"].event_tokens == 1_000
    assert charged["own"] == 1_000 * 7_000_000
    assert charged["plain"] < charged["own"]
