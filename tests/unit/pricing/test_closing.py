"""Closing a period: what is billed is what the logs give, and every reader says so alike."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.pricing import at_random
from tests.unit.pricing import builders as make

from kernel import leaf as leaves
from kernel.clock import timestamp_of
from pricing.domain import books, period_ends
from pricing.domain.billing import Extent, total_pico
from pricing.domain.card import Card
from pricing.domain.replay import Replay
from pricing.domain.statement import Closed, Entries, Statement, state
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.pricing.v1 import accounts_pb2, commitment_pb2, control_pb2
from tollbook.usage.v1 import usage_pb2 as usage

LOG = "usage-0"
FEBRUARY_US = make.T0_US + 31 * 86_400 * 10**6
MARCH_US = FEBRUARY_US + 28 * 86_400 * 10**6
APRIL_US = MARCH_US + 31 * 86_400 * 10**6
few = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


def record(position: int, at_us: int = APRIL_US, **change: object) -> bytes:
    """A control record whose leaf has this time."""
    made = control_pb2.ControlRecord(recorded_time=timestamp_of(at_us), actor="test", **change)  # type: ignore[arg-type]
    return leaves.encode(
        ledger.DISPOSITION_ACCEPTED, 0, position, at_us // 1000, b"key", made.SerializeToString()
    )


class Books:
    """A replay, the control log as it grows, and one usage log."""

    def __init__(self) -> None:
        self.replay = Replay()
        self.postings: list[books.Posting] = []
        self.why: list[str] = []
        self._usage = 0

    @property
    def size(self) -> int:
        return self.replay.sizes.get("control", 0)

    def control(self, raw: bytes) -> None:
        effects = self.replay.apply_control(self.size, raw)
        self.postings += effects.postings
        self.why += [entry.why for entry in effects.ignored]

    def use(self, *data: bytes, pin: int | None = None) -> None:
        """Events of the log, pinned to all that is known, if nothing else is said."""
        pin = self.size if pin is None else pin
        effects = self.replay.apply_usage(LOG, self._usage, pin, data)
        self._usage += len(data)
        self.postings += effects.postings
        self.why += [entry.why for entry in effects.ignored]

    def spend(self, output: int, at_us: int = make.T0_US, account_id: str = "acme") -> None:
        self.use(make.event(self._usage, output=output, time_us=at_us, account_id=account_id))

    def end(self, period: str, at_us: int = APRIL_US) -> None:
        self.control(record(self.size, at_us, period_ended=accounts_pb2.PeriodEnded(period=period)))

    def stated(self, period: str, account_id: str = "acme") -> Statement:
        projection = self.replay.projection
        end = projection.control.ends.of(period)
        assert end is not None
        closed = projection.closings.closed.get(account_id, [])
        before = closed[-1] if closed else None
        named = projection.bills.logs_of(account_id)
        entries = (
            projection.closings.passed.entries(named, end, before)
            if all(projection.closings.passed.is_beyond(log, end) for log in named)
            else [Entries(log, 0, 1) for log in named]
        )
        return state(projection.bills, (account_id, "USD"), end, entries, before)

    def close(self, period: str, account_id: str = "acme", **other: Any) -> Statement:
        """Close a period by what the logs give, or by something else."""
        stated = self.stated(period, account_id)
        made = stated.record()
        made.MergeFrom(accounts_pb2.PeriodClosed(**other))
        self.control(record(self.size, period_closed=made))
        return stated

    def balance(self, ledger_account: str) -> int:
        return self.replay.balance(ledger_account, "USD")


def opened(*more: bytes) -> Books:
    made = Books()
    for raw in (make.account(0), make.card(1), make.grant(2, "g1", 10**12), *more):
        made.control(raw)
    assert not made.why
    return made


def test_a_period_is_closed_with_one_rounding_that_an_account_keeps() -> None:
    made = opened()
    # 0.0084 dollars in January, and 0.6 in February, which is another invoice's.
    made.spend(14_000)
    made.spend(10**6, FEBRUARY_US)
    made.end("2026-01")
    made.spend(1, MARCH_US)
    stated = made.close("2026-01")
    assert not made.why
    assert stated.charged_pico == 14_000 * 600_000
    assert (stated.invoiced_pico, stated.corrected_pico) == (10**10, 0)
    residual = 10**10 - 14_000 * 600_000
    assert made.balance(books.rounding("acme")) == residual
    assert stated.closing_pico == 10**12 - 10**10
    assert sum(made.replay.balances.values()) == 0


def test_what_comes_late_changes_the_next_period_and_not_the_closed_one() -> None:
    made = opened()
    made.spend(10**5)
    made.end("2026-01")
    made.spend(10**5, FEBRUARY_US)
    january = made.close("2026-01")
    # Of January, and pinned after its end.
    made.spend(5 * 10**4)
    made.end("2026-02")
    made.spend(1, MARCH_US)
    february = made.close("2026-02")
    assert not made.why
    assert january.exact_pico == 10**5 * 600_000
    assert february.charged_pico == 10**5 * 600_000
    assert february.corrected_pico == 5 * 10**4 * 600_000
    late = [key.month for key, _ in february.lines]
    assert late == ["2026-01", "2026-02"]
    assert february.opening_pico == january.closing_pico


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"charged": {"currency": "USD", "amount_pico": "1"}}, "it says charged 1 pico, the logs"),
        ({"corrected": {"currency": "USD", "amount_pico": "1"}}, "it says corrected 1 pico"),
        ({"statement_hash": bytes(32)}, "it speaks of statement 00000000"),
        ({"end_position": 1}, "no record at 1 says that the period ended"),
        ({"time_zone": "Europe/Berlin"}, "periods are months by UTC"),
        ({"charged": {"currency": "EUR", "amount_pico": "1"}}, "not in the account's USD"),
        ({"logs": ["control"]}, "it names its logs once each and in order"),
        ({"account_id": "nobody"}, "there is no such account"),
        ({"invoiced": {"currency": "USD", "amount_pico": str(10**13)}}, "exact amount, rounded"),
    ],
)
def test_a_closing_that_says_something_else_is_refused_and_another_can_follow(
    other: dict[str, Any], why: str
) -> None:
    made = opened()
    made.spend(14_000)
    made.end("2026-01")
    made.spend(1, MARCH_US)
    made.close("2026-01", **other)
    assert len(made.why) == 1
    assert why in made.why[0]
    assert not made.balance(books.rounding("acme"))
    made.close("2026-01")
    assert len(made.why) == 1
    assert made.balance(books.rounding("acme"))
    made.close("2026-01")
    assert "period 2026-01 is closed" in made.why[1]


def test_a_closing_waits_until_nothing_can_come_before_its_end() -> None:
    made = opened()
    made.spend(14_000)
    made.end("2026-01")
    made.close("2026-01")
    assert made.replay.projection.closings.waits("acme")
    # An entry that was on its way when the end was recorded: the closing did not know it.
    made.use(make.event(1, output=1), pin=3)
    assert made.replay.projection.closings.waits("acme")
    made.spend(1, MARCH_US)
    assert "it says charged" in made.why[0]
    made.close("2026-01")
    assert len(made.why) == 1
    assert not made.replay.projection.closings.waits("acme")


@pytest.mark.parametrize(
    ("period", "at_us", "why"),
    [
        ("2026-03", APRIL_US - 1_000_000, "is not over"),
        ("2026-13", APRIL_US, "a period is a month"),
        ("2025-12", APRIL_US, "2025-12 is not after it"),
    ],
)
def test_a_period_ends_once_and_when_it_is_over(period: str, at_us: int, why: str) -> None:
    made = opened()
    made.end("2026-01", APRIL_US - 2_000_000)
    made.end(period, at_us)
    assert [why in said for said in made.why] == [True]


def test_an_account_without_usage_is_closed_at_once() -> None:
    made = opened()
    made.end("2026-01")
    stated = made.close("2026-01")
    assert not made.why
    assert (stated.invoiced_pico, stated.closing_pico) == (0, 10**12)


def test_a_metered_line_is_billed_by_all_its_units_from_either_side_of_an_end() -> None:
    tiers = "tiers: {by: monthly_volume, mode: graduated, steps: [{over: 30, price: 0.50}]}"
    line = f"  - {{id: out, match: {{direction: out}}, per: 1000, price: 1.00, {tiers}}}"
    head = make.CARD.split("lines:")[0]
    made = Books()
    for raw in (make.account(0), make.card(1, f"{head}lines:\n{line}\n")):
        made.control(raw)
    made.spend(20)
    made.end("2026-01")
    made.spend(25)
    for era, units, pico in ((0, 20, 20 * 10**9), (1, 45, 30 * 10**9 + 15 * 5 * 10**8)):
        extent = Extent(frozenset({LOG}), era)
        (found,) = made.replay.projection.bills.lines("acme", "USD", extent, "2026-01").values()
        assert (found.units, found.amount_pico) == (units, pico)


@given(
    st.integers(-(10**4), 10**4),
    st.integers(-1, 1),
    st.sampled_from(["USD", "JPY", "KWD", "CLF"]),
)
def test_rounding_is_to_the_nearest_unit_and_halves_to_the_even_one(
    halves: int, more: int, currency: str
) -> None:
    unit = period_ends.smallest_pico(currency)
    exact = halves * unit // 2 + more
    invoiced = period_ends.invoiced_pico(exact, currency)
    assert invoiced % unit == 0
    assert 2 * abs(invoiced - exact) <= unit
    if 2 * abs(invoiced - exact) == unit:
        assert invoiced // unit % 2 == 0
    assert period_ends.invoiced_pico(-exact, currency) == -invoiced


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_is_priced_after_a_periods_end_is_billed_in_the_next(ahead: int) -> None:
    """Also by a reader that knows the card already when it meets the event."""
    made = opened()
    late = make.CARD.replace("card: standard", "card: late").replace("model: tiny", "model: slow")
    waits = make.event(0, output=10, model="slow")
    end = record(3, period_ended=accounts_pb2.PeriodEnded(period="2026-01"))
    tail = [end, make.card(4, late)]
    for raw in tail[:ahead]:
        made.control(raw)
    made.use(waits, pin=3)
    for raw in tail[ahead:]:
        made.control(raw)
    bills = made.replay.projection.bills
    for era, pico in ((0, 0), (1, 10 * 600_000)):
        lines = bills.lines("acme", "USD", Extent(frozenset({LOG}), era), "2026-12")
        assert total_pico(lines.values()) == pico


some_events = st.lists(st.integers(0, 10**9), max_size=12).flatmap(
    lambda seeds: st.tuples(*(at_random.events(index) for index in range(len(seeds))))
)
actions = st.lists(st.sampled_from(["end", "commit", "card", "run", "run", "run"]), max_size=10)


def written(
    versions: list[Card], events: tuple[usage.UsageEvent, ...], steps: list[str]
) -> tuple[list[bytes], list[tuple[int, list[bytes]]]]:
    """A control log, and a usage log as runs with their pins, as if they had come in this order."""
    control = [make.account(0), make.account(1, "bolt")]
    control.append(record(2, rate_card_published=make.published(versions[0], 1)))
    runs: list[tuple[int, list[bytes]]] = []
    data = [at_random.usage_leaf(index, event) for index, event in enumerate(events)]
    periods = ["2026-01", "2026-02", "2026-03"]
    later = versions[1:]
    for step in (*steps, "run"):
        if step == "end" and periods:
            made = accounts_pb2.PeriodEnded(period=periods.pop(0))
            control.append(record(len(control), period_ended=made))
        elif step == "commit":
            closing = commitment_pb2.CommitmentClosed(card_id="random", period="2026-01")
            control.append(record(len(control), commitment_closed=closing))
        elif step == "card" and later:
            published = make.published(later.pop(0), 2)
            control.append(record(len(control), rate_card_published=published))
        elif data:
            size = max(1, len(data) // 2) if step == "run" else 0
            runs.append((len(control), data[:size]))
            data = data[size:]
    if data:
        runs.append((len(control), data))
    return control, runs


def read(control: list[bytes], runs: list[tuple[int, list[bytes]]], ahead: list[int]) -> Replay:
    """Both logs, the control log further ahead of its pins or less."""
    replay = Replay()
    at = 0
    for index, (pin, data) in enumerate(runs):
        extra = ahead[index % len(ahead)] if ahead else 0
        until = min(len(control), max(pin + extra, replay.sizes.get("control", 0)))
        for position in range(replay.sizes.get("control", 0), until):
            replay.apply_control(position, control[position])
        replay.apply_usage(LOG, at, pin, data)
        at += len(data)
    for position in range(replay.sizes.get("control", 0), len(control)):
        replay.apply_control(position, control[position])
    return replay


@few
@given(
    st.lists(at_random.random_cards(), min_size=1, max_size=2),
    some_events,
    actions,
    st.lists(st.integers(0, 6), max_size=4),
)
def test_what_is_billed_depends_on_no_order_of_reading_and_comes_to_the_postings(
    versions: list[Card],
    events: tuple[usage.UsageEvent, ...],
    steps: list[str],
    ahead: list[int],
) -> None:
    control, runs = written(versions, events, steps)
    cut = [(pin, data[at : at + 1]) for pin, data in runs for at in range(len(data))]
    one, other = read(control, runs, [0]), read(control, cut, ahead)
    assert one.digest() == other.digest()
    for account_id in ("acme", "bolt"):
        for era in range(4):
            for until in ("2026-01", "2026-02", "2199-12"):
                extent = Extent(frozenset({LOG}), era)
                lines = [
                    books_.projection.bills.lines(account_id, "USD", extent, until)
                    for books_ in (one, other)
                ]
                assert lines[0] == lines[1]
                if era == 3 and until == "2199-12":
                    charged = one.balance(books.revenue(account_id), "USD")
                    assert total_pico(lines[0].values()) == charged


@few
@given(st.lists(at_random.random_cards(), min_size=1, max_size=2), some_events, actions)
def test_statements_come_to_all_that_was_charged_and_rounded(
    versions: list[Card], events: tuple[usage.UsageEvent, ...], steps: list[str]
) -> None:
    """One after the other, they bill every charge of their months that was known, once."""
    replay = read(*written(versions, events, steps), [0])
    projection = replay.projection
    ends = projection.control.ends.ends
    entries = [Entries(LOG, 0, 1)]
    for account_id in ("acme", "bolt"):
        before: Closed | None = None
        exact = invoiced = 0
        for end in ends:
            stated = state(projection.bills, (account_id, "USD"), end, entries, before)
            own = [line for key, line in stated.lines if key.month == end.period]
            late = [line for key, line in stated.lines if key.month != end.period]
            assert total_pico(own) == stated.charged_pico
            assert total_pico(late) == stated.corrected_pico
            exact += stated.exact_pico
            invoiced += stated.invoiced_pico
            assert stated.closing_pico == -invoiced
            assert abs(stated.rounding_pico) * 2 <= period_ends.smallest_pico("USD")
            before = Closed(0, end, stated.logs, stated.closing_pico, stated.digest())
        if ends:
            extent = Extent(frozenset({LOG}), ends[-1].era)
            lines = projection.bills.lines(account_id, "USD", extent, ends[-1].period)
            assert exact == total_pico(lines.values())
