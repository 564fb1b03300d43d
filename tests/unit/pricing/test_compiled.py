"""The compiled loops and the plain code come to the same, whatever bytes stand in a log."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.pricing import builders as make

from kernel import leaf as leaves
from kernel.clock import timestamp_of
from pricing.domain import batch, tally
from pricing.domain.card import content_hash
from pricing.domain.card_yaml import parse_card
from pricing.domain.catalogue import Catalogue, published_card
from pricing.domain.charges import Charges
from pricing.domain.compiled import columns
from pricing.domain.events import MAX_QUANTITY
from pricing.domain.identity import identity_of
from pricing.domain.meters import Commitments, Meters
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.usage.v1 import usage_pb2 as usage

LATER = make.CARD.replace("2026-01-01T00:00:00Z", "2026-01-01T00:00:10Z").replace("0.60", "0.80")
LATER += "  - {id: more, match: {direction: in}, per: 1_000_000, price: 0.05, surcharge: true}\n"


@pytest.fixture(scope="module", autouse=True)
def loops() -> Iterator[None]:
    tally.prepare()
    yield
    tally._loops = None


def catalogue() -> Catalogue:
    found = []
    for position, text in enumerate((make.CARD, LATER)):
        card = parse_card(text)
        found.append(published_card(position, card, position + 1, content_hash(card.document())))
    return Catalogue(found)


# Shorter and longer than a word of eight bytes, alike but for the last, and not all in ASCII.
text = st.sampled_from(
    [
        "",
        "tiny",
        "small",
        "é",
        "flex",
        "standard",
        "\x00",
        "standardé",
        "a-longer-one",
        "a-longer-on3",
    ]
)
quantity = st.builds(
    lambda unit, direction, modality, cache, ttl, kind, attribute, amount, kept: usage.Quantity(
        unit=unit,
        direction=direction,
        modality=modality,
        cache_use=cache,
        cache_ttl=ttl,
        token_kind=kind,
        attribute=attribute,
        amount=amount,
        undelivered_amount=min(amount, kept) if kept < 10**12 else kept,
    ),
    st.sampled_from([1, 1, 1, 2, 17]),
    st.integers(0, 2),
    st.sampled_from([0, 0, 1, 3]),
    st.integers(0, 3),
    st.integers(0, 1),
    st.integers(0, 2),
    text,
    st.one_of(st.integers(0, 3_000), st.sampled_from([-1, 10**12, 10**12 + 1, 2**63 - 1])),
    st.one_of(st.integers(0, 3_000), st.sampled_from([-1, 2**62])),
)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    event = usage.UsageEvent(
        event_id=draw(text),
        account_id=draw(st.sampled_from(["acme", "acme", "bolt", "", "é"])),
        served_model=draw(st.sampled_from(["tiny", "tiny", "other"])),
        base_model=draw(st.sampled_from(["", "tiny"])),
        adapter=draw(text),
        service_tier=draw(st.sampled_from(["", "", "standard", "flex"])),
        region=draw(text),
        quantities=draw(st.lists(quantity, max_size=4)),
        outcome=draw(st.integers(0, 9)),  # type: ignore[arg-type]
        event_time=timestamp_of(make.T0_US + draw(st.integers(-2, 20)) * 1_000_000),
        engine_id=draw(st.sampled_from(["", "engine-1"])),
        output_digest=draw(st.sampled_from([b"", b"\x01" * 32])),
        choice_count=draw(st.integers(0, 2)),
    )
    record = usage.UsageRecord(stream_id=draw(text), stream_seq=draw(st.integers(0, 300)))
    kind = draw(st.sampled_from(["event"] * 8 + ["reading", "close"]))
    if kind == "event":
        record.trace_id = draw(st.sampled_from([b"", b"t" * 16]))
        record.usage_event = event.SerializeToString()
    elif kind == "reading":
        record.engine_reading.engine_id = "engine-1"
        record.engine_reading.generation_tokens = draw(st.integers(-1, 9))
    else:
        record.stream_close.last_seq = 3
    return record.SerializeToString()


@st.composite
def raw_leaves(draw: st.DrawFn) -> bytes:
    disposition = draw(
        st.sampled_from(
            [
                ledger.DISPOSITION_ACCEPTED,
                ledger.DISPOSITION_ACCEPTED,
                ledger.DISPOSITION_ACCEPTED,
                ledger.DISPOSITION_DUPLICATE,
            ]
        )
    )
    raw = leaves.encode(disposition, 0, 7, 7, b"key", draw(records()))
    damage = draw(st.sampled_from(["none"] * 6 + ["byte", "cut", "more"]))
    if damage == "byte":
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([draw(st.integers(0, 255))]) + raw[at + 1 :]
    elif damage == "cut":
        raw = raw[: draw(st.integers(0, len(raw)))]
    elif damage == "more":
        raw += draw(st.binary(min_size=1, max_size=3))
    return raw


def currency_of(account_id: str) -> str | None:
    return "USD" if account_id == "acme" else None


@given(st.lists(raw_leaves(), min_size=1, max_size=12), st.integers(0, 10**6), st.booleans())
def test_compiled_and_plain_come_to_the_same(data: list[bytes], first: int, by_use: bool) -> None:
    plain = run(by_use)
    for position, raw in enumerate(data, first):
        plain.add(position, raw)
    compiled = run(by_use)
    compiled.add_tally(first, data)
    # Before they are made: only their places, and only a few.
    applied = compiled.effects.applied
    places, few = sorted(applied.places()), list(applied.some(2))
    assert finished(plain) == finished(compiled)
    assert places == sorted(applied.places())
    assert places == [
        (event.position, identity_of(event.account_id, event.event_id)) for event in applied
    ]
    assert len(few) == min(2, len(places))
    assert set(few) <= set(applied)


def run(by_use: bool = True) -> batch._Run:
    charges = Charges("usage-0", Meters(), Commitments(), sums_use=by_use, counts_units=True)
    return batch._Run("usage-0", currency_of, catalogue(), charges)


def made(position: int) -> bytes:
    event = usage.UsageEvent(
        event_id=f"event-{position}",
        account_id="acme" if position % 3 else f"account-{position % 97}",
        served_model="tiny",
        engine_id=f"engine-{position % 61}",
        event_time=timestamp_of(make.T0_US),
    )
    event.quantities.add(unit=usage.UNIT_TOKEN, direction=usage.DIRECTION_IN, amount=position % 3)
    for number in range(2):
        event.quantities.add(
            unit=usage.UNIT_TOKEN,
            direction=usage.DIRECTION_OUT,
            amount=1 + position % 5,
            attribute=f"attribute-{(position + number) % 7}",
        )
    record = usage.UsageRecord(stream_id="s", usage_event=event.SerializeToString())
    record.stream_seq = position
    return leaves.encode(
        ledger.DISPOSITION_ACCEPTED, 0, position, 0, b"", record.SerializeToString()
    )


def test_no_number_of_groups_and_texts_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and texts grow while a run is read, and what was entered is found again."""
    monkeypatch.setattr(tally, "_STRETCH_LEAVES", 16)
    monkeypatch.setattr(tally, "_FIRST_ENTRIES", 2)
    monkeypatch.setattr(tally, "_FIRST_TEXT_BYTES", 8)
    data = [made(position) for position in range(600)]
    plain, compiled = run(), run()
    for position, raw in enumerate(data):
        plain.add(position, raw)
    compiled.add_tally(0, data)
    assert len(compiled.effects.applied) == len(data)
    assert finished(plain) == finished(compiled)


@pytest.mark.parametrize("by_use", [True, False])
def test_a_surcharge_is_charged_beside_its_line_and_counts_no_use(by_use: bool) -> None:
    late_us = make.T0_US + 15_000_000
    data = [
        make.event(position, plain=3, cached=2, output=1, time_us=late_us) for position in range(3)
    ]
    plain, compiled = run(by_use), run(by_use)
    for position, raw in enumerate(data):
        plain.add(position, raw)
    compiled.add_tally(0, data)
    rated = finished(compiled)
    assert rated == finished(plain)
    on_top = [one.amount_pico for one in rated.effects.postings if one.line_id == "more"]
    assert on_top == [15 * 50_000]


def test_no_sum_of_a_run_is_beyond_64_bits_and_no_charge_is_cut() -> None:
    """What a run can hold at the most fits, and a charge of it is exact, however large."""
    assert tally.MAX_LEAVES * columns.MAX_QUANTITIES * MAX_QUANTITY < 2**62
    event = usage.UsageEvent(
        event_id="large",
        account_id="acme",
        served_model="tiny",
        event_time=timestamp_of(make.T0_US + 20_000_000),
        outcome=usage.OUTCOME_COMPLETE,
    )
    for _ in range(columns.MAX_QUANTITIES):
        event.quantities.add(
            unit=usage.UNIT_TOKEN, direction=usage.DIRECTION_OUT, amount=MAX_QUANTITY
        )
    record = usage.UsageRecord(stream_id="s", usage_event=event.SerializeToString())
    data = [make.entry(record.SerializeToString(), position) for position in range(300)]
    plain, compiled = run(), run()
    for position, raw in enumerate(data):
        plain.add(position, raw)
    compiled.add_tally(0, data)
    rated = finished(compiled)
    assert rated == finished(plain)
    (posting,) = rated.effects.postings
    assert posting.quantity == 300 * columns.MAX_QUANTITIES * MAX_QUANTITY
    assert posting.amount_pico == posting.quantity * 800_000 > 2**63


def finished(run: batch._Run) -> batch.Rated:
    rated = run.finish()
    run._charges.finish(rated.effects)
    rated.effects.ignored.sort()
    return rated


def test_ordinary_events_are_read_by_the_loops() -> None:
    data = [make.event(position, plain=3, cached=2, output=1) for position in range(5)]
    found = tally.tally(data, np.zeros_like, (), np.zeros_like)
    assert not found.odd()
    assert found.events == 5
