"""The laws of rating, on cards and usage at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.pricing import at_random, naive
from tests.unit.pricing import builders as make

from pricing.domain import batch, books, tally
from pricing.domain.card import Card, content_hash
from pricing.domain.catalogue import Catalogue, published_card
from pricing.domain.charges import Charges
from pricing.domain.meters import Commitments, Meters
from pricing.domain.quoting import Bound, quote
from pricing.domain.rate import Batch, Cards, rate
from pricing.domain.replay import Replay
from tollbook.usage.v1 import usage_pb2 as usage

LOG = "usage-0"
# By their number: a list would be short, or empty, nearly always.
some_events = st.integers(0, 14).flatmap(
    lambda count: st.tuples(*(at_random.events(index) for index in range(count)))
)
few = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", autouse=True)
def loops() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # However short a run: what is tested is that the loops come to the same.
        patch.setattr(batch, "MIN_LEAVES", 1)
        tally.prepare()
        yield
    tally._loops = None


def opened(*cards: Card) -> Replay:
    replay = Replay()
    for position, account in enumerate(("acme", "bolt")):
        replay.apply_control(position, make.account(position, account))
    for position, card in enumerate(cards, 2):
        effects = replay.apply_control(
            position, make.control(position, rate_card_published=make.published(card, position - 1))
        )
        assert not effects.ignored, effects.ignored
    return replay


def charged(replay: Replay) -> dict[str, int]:
    prefix = books.revenue("")
    return {
        account.removeprefix(prefix): amount
        for (account, _), amount in replay.balances.items()
        if account.startswith(prefix) and amount
    }


def feed(replay: Replay, data: list[bytes], size: int) -> list[books.Posting]:
    postings: list[books.Posting] = []
    for at in range(0, len(data), size):
        effects = replay.apply_usage(LOG, at, replay.sizes["control"], data[at : at + size])
        assert not effects.ignored
        postings += effects.postings
    return postings


def leaves_of(events: tuple[usage.UsageEvent, ...]) -> list[bytes]:
    return [at_random.usage_leaf(index, event) for index, event in enumerate(events)]


@few
@given(st.lists(at_random.random_cards(), min_size=1, max_size=2), some_events)
def test_a_run_costs_what_paper_says(
    versions: list[Card], events: tuple[usage.UsageEvent, ...]
) -> None:
    paper = naive.Books([naive.Known(card, number) for number, card in enumerate(versions, 1)])
    for event in events:
        paper.add(event)
    for compiled in (True, False):
        replay = opened(*versions)
        if compiled:
            feed(replay, leaves_of(events), 100)
        else:
            loops, tally._loops = tally._loops, None
            try:
                feed(replay, leaves_of(events), 100)
            finally:
                tally._loops = loops
        assert charged(replay) == paper.totals()
        assert replay.suspense() == paper.unpriced


@few
@given(
    st.lists(at_random.random_cards() | at_random.falling_cards(), min_size=1, max_size=2),
    some_events,
    st.booleans(),
    st.sampled_from([{"acme": "USD"}, {"acme": "USD", "bolt": "USD"}]),
)
def test_summed_by_columns_or_one_by_one_every_effect_is_the_same(
    versions: list[Card],
    events: tuple[usage.UsageEvent, ...],
    by_use: bool,
    currencies: dict[str, str],
) -> None:
    """Postings and how they fold, meters' moves, totals, uses, units for bills, and what waits."""
    catalogue = Catalogue(
        [
            published_card(number, card, number, content_hash(card.document()))
            for number, card in enumerate(versions, 1)
        ]
    )
    found: list[batch.Rated] = []
    for compiled in (True, False):
        charges = Charges(LOG, Meters(), Commitments(), sums_use=by_use, counts_units=True)
        with pytest.MonkeyPatch.context() as patch:
            if not compiled:
                patch.setattr(tally, "_loops", None)
            data = leaves_of(events)
            rated = batch.rate_run(LOG, 7, data, currencies.get, catalogue, charges)
        charges.finish(rated.effects)
        found.append(rated)
    assert found[0] == found[1]


@few
@given(
    st.lists(at_random.random_cards(), min_size=1, max_size=2),
    some_events,
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_no_cut_and_no_order_of_the_logs_changes_a_byte(
    versions: list[Card],
    events: tuple[usage.UsageEvent, ...],
    sizes: list[int],
    late: int,
    random: object,
) -> None:
    """Two logs, each account in one; a card that comes when part of them is read."""
    logs: dict[str, list[bytes]] = {"usage-0": [], "usage-1": []}
    for event in events:
        log = logs["usage-0" if event.account_id == "acme" else "usage-1"]
        log.append(at_random.usage_leaf(len(log), event))
    last = make.control(
        2 + len(versions) - 1,
        rate_card_published=make.published(versions[-1], len(versions)),
    )
    before = versions[:-1]

    def read(order: list[str], sizes: list[int], late: int) -> Replay:
        replay = opened(*before)
        pin = replay.sizes["control"]
        at = dict.fromkeys(logs, 0)
        for steps, name in enumerate(order):
            if steps == late:
                replay.apply_control(pin, last)
            size = sizes[steps % len(sizes)]
            part = logs[name][at[name] : at[name] + size]
            if part:
                replay.apply_usage(name, at[name], pin, part)
                at[name] += len(part)
        if replay.sizes["control"] == pin:
            replay.apply_control(pin, last)
        for name, data in logs.items():
            if at[name] < len(data):
                replay.apply_usage(name, at[name], pin, data[at[name] :])
        return replay

    order = ["usage-0", "usage-1"] * 8
    random.shuffle(order)  # type: ignore[attr-defined]
    one = read(["usage-0", "usage-1"], [100], 9)
    other = read(order, sizes, late)
    assert one.digest() == other.digest()
    assert one.projection.meters.counts == other.projection.meters.counts
    assert one.projection.commitments.months == other.projection.commitments.months
    assert sum(one.balances.values()) == 0


@few
@given(at_random.random_cards(), some_events, st.integers(0, 14))
def test_without_months_two_parts_cost_their_sum(
    card: Card, events: tuple[usage.UsageEvent, ...], cut: int
) -> None:
    if card.commitment is not None or any(line.is_metered for line in card.lines):
        return
    sums: dict[str, int] = {}
    for part in (events[:cut], events[cut:]):
        replay = opened(card)
        feed(replay, leaves_of(part), 100)
        for account, amount in charged(replay).items():
            sums[account] = sums.get(account, 0) + amount
    whole = opened(card)
    feed(whole, leaves_of(events), 100)
    assert charged(whole) == sums


@few
@given(
    st.lists(at_random.random_cards() | at_random.falling_cards(), min_size=1, max_size=2),
    some_events,
    st.lists(st.sampled_from([1, 1, 2, 5]), min_size=1, max_size=4),
)
def test_usage_never_yields_a_credit(
    versions: list[Card], events: tuple[usage.UsageEvent, ...], sizes: list[int]
) -> None:
    """At every position: usage takes, and what gives back gives of what was taken before.

    What an adjustment gives back was charged by the same line and rule of the same account's
    month, and what a meter's month was charged, as a whole, is what its units cost by the tiers.
    """
    cards = dict(enumerate(versions, 1))
    paper = naive.Books([naive.Known(card, number) for number, card in cards.items()])
    replay = opened(*versions)
    data = leaves_of(events)
    of_line: Counter[tuple[str, str, int, str, str, str]] = Counter()
    of_month: Counter[tuple[str, str, str]] = Counter()
    of_meter: Counter[naive.Meter] = Counter()
    at = steps = 0
    while at < len(data):
        end = at + sizes[steps % len(sizes)]
        effects = replay.apply_usage(LOG, at, replay.sizes["control"], data[at:end])
        for event in events[at:end]:
            paper.add(event)
        at, steps = end, steps + 1
        for posting in effects.postings:
            takes = posting.debit.startswith("account:")
            account = (posting.debit if takes else posting.credit).removeprefix("account:")
            signed_pico = posting.amount_pico if takes else -posting.amount_pico
            assert takes or posting.kind in (books.ADJUSTMENT, books.COMMITMENT)
            of_month[account, posting.card_id, posting.period] += signed_pico
            if posting.kind == books.COMMITMENT:
                continue
            version, line_id, month = posting.card_version, posting.line_id, posting.period
            of_line[account, posting.card_id, version, line_id, posting.rule, month] += signed_pico
            line = next(line for line in cards[version].lines if line.line_id == line_id)
            if line.is_metered:
                of_meter[account, posting.card_id, line.meter or line_id, month] += signed_pico
        assert all(amount_pico >= 0 for amount_pico in of_line.values())
        assert all(amount_pico >= 0 for amount_pico in of_month.values())
        assert {meter: amount for meter, amount in of_meter.items() if amount} == paper.meters()
        assert charged(replay) == paper.totals()


@few
@given(
    st.lists(at_random.random_cards(), min_size=1, max_size=2),
    some_events,
    st.integers(1, 14),
)
def test_receipts_add_up_to_the_postings_to_the_last_unit(
    versions: list[Card], events: tuple[usage.UsageEvent, ...], size: int
) -> None:
    entries = [
        published_card(number, card, number, content_hash(card.document()))
        for number, card in enumerate(versions, 1)
    ]
    cards = Cards(Catalogue(entries), {"acme": "USD"}.get)
    receipts, balances = 0, dict[books.BalanceKey, int]()
    data = leaves_of(events)
    for at in range(0, len(data), size):
        done = rate(Batch(LOG, at, data[at : at + size]), cards)
        books.apply(balances, done.postings)
        for receipt in done.receipts():
            receipts += receipt.amount_pico
            assert receipt.waits == (receipt.event.position in done.unpriced)
    assert balances.get((books.revenue("acme"), "USD"), 0) == receipts
    assert balances.get((books.customer("acme"), "USD"), 0) == -receipts


@few
@given(at_random.random_cards(), some_events)
def test_an_upper_bound_is_never_below_the_charge(
    card: Card, events: tuple[usage.UsageEvent, ...]
) -> None:
    """For each event by itself, whatever its month stood at before."""
    entry = published_card(1, card, 1, content_hash(card.document()))
    catalogue = Catalogue([entry])
    cards = Cards(catalogue, {"acme": "USD", "bolt": "USD"}.get)
    done = rate(Batch(LOG, 0, leaves_of(events)), cards)
    for receipt in done.receipts():
        event = receipt.event
        tokens = [part for part in event.leaves if part.key.unit == "token"]
        bound = Bound(
            event.context,
            sum(part.amount for part in tokens if part.key.direction == "in"),
            sum(part.amount for part in tokens if part.key.direction == "out"),
            event.event_time_us,
        )
        least = quote(bound, event.account_id, "USD", catalogue).amount_pico
        charged = sum(part.amount_pico for part in receipt.leaves if part.leaf.key.unit == "token")
        assert charged <= least
        if card.commitment is None:
            searches = sum(
                part.amount_pico for part in receipt.leaves if part.leaf.key.unit != "token"
            )
            assert receipt.amount_pico - searches <= least
