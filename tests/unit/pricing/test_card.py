"""A rate card's errors name their place and what to do."""

from __future__ import annotations

import pytest
from tests.unit.pricing.builders import CARD, T0_US

from pricing.domain.card import Line, content_hash, read_document
from pricing.domain.card_yaml import parse_card
from pricing.domain.catalogue import Catalogue, published_card
from pricing.domain.dimensions import Context, LeafKey
from pricing.domain.document import DocumentError


def problems(text: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        parse_card(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_card_survives_its_document() -> None:
    card = parse_card(CARD)
    assert read_document(card.document()) == card
    assert [line.price_pico for line in card.lines] == [150_000, 75_000, 600_000]


@pytest.mark.parametrize(
    ("broken", "place", "message"),
    [
        (CARD.replace('"0.15"', '"0.15e1"'), "line 6,", "not a decimal number"),
        (CARD.replace('"0.15"', '"0.0000000000001"'), "line 6,", "whole number of pico-units"),
        (CARD.replace('"0.15"', '"-1"'), "line 6,", "not negative"),
        (CARD.replace("direction: out", "direction: sideways"), "line 8,", "one of in, none, out"),
        (CARD.replace("currency: USD", "currency: dollars"), "line 3,", "ISO 4217"),
        (CARD.replace("2026-01-01T00:00:00Z", "tomorrow"), "line 4,", "RFC 3339"),
        (CARD.replace("tiny-out", "tiny-in"), "line 8,", "stands twice"),
        (CARD + "surprise: 1\n", "line 9,", "has no 'surprise'"),
        ("card: [", "line 1,", "expected"),
        ("", "line 1,", "empty"),
        (
            CARD.replace("cache_use: read", "cache_use: none"),
            "line 7,",
            "equal specificity",
        ),
        (
            CARD.replace("model: tiny", 'model: "\\ud800"', 1),
            "line",
            "'model' is at most 256 characters without control characters",
        ),
    ],
)
def test_a_broken_card_says_where_and_what(broken: str, place: str, message: str) -> None:
    found = problems(broken)
    assert any(text.startswith(place) and message in text for text in found), found


PLAIN_HASH = "38818040d08bb2a3ebcbcc4019bf260de01d6205cedc7fd63ee74c5b860f6413"

FULL = """
card: full
purpose: cost
currency: EUR
accounts: [acme]
effective_from: 2026-01-01T00:00:00Z
timezone: Europe/Berlin
time_windows:
  night: {from: 22:00, to: 06:00}
  noon: {days: [mon, fri], from: 12:00, to: 13:00:30}
multipliers:
  - {id: flex, match: {service_tier: flex}, factor: 0.5}
  - {id: night, match: {time_window: night}, factor: 3/4}
fallback: [parent_class, base_model, suspense]
commitment: {minimum: 100.00, maximum: 1000}
lines:
  - id: in
    match: {model: tiny, direction: in}
    per: 1_000_000
    price: 3.00
    tiers:
      by: context_length
      mode: whole_request
      boundary: gte
      steps: [{over: 200_000, price: 6.00}]
  - id: out
    match: {model: tiny, direction: out}
    per: 1_000_000
    price: 15.00
    tiers: {by: monthly_volume, mode: graduated, steps: [{over: 1_000_000, price: 12.00}]}
    included: 1000
    meter: tokens
    percentage: 5.00001
    rounding: half_even
  - {id: search, unit: search, match: {service_tier: any}, package: 10, price: 0.05}
  - {id: audio, unit: audio_ms, price: 0.000001, minimum_units: 10_000, minimum_charge: 0.001}
  - {id: tuned, match: {adapter: "*", direction: in}, surcharge: true, percentage: 10, rounding: up}
  - id: eu
    surcharge: true
    price: 0.10
    per: 1000000
    multipliers: [{id: west, match: {region: west}, factor: 1.1}]
"""


def test_every_feature_survives_its_document() -> None:
    card = parse_card(FULL)
    assert read_document(card.document()) == card
    assert card.windows[0].days == (0, 1, 2, 3, 4, 5, 6)
    assert card.windows[1].end_s == 13 * 3600 + 30
    assert [line.line_id for line in card.lines if line.is_metered] == ["out"]


def test_a_plain_cards_document_is_as_it_was_before_there_was_more() -> None:
    assert content_hash(parse_card(CARD).document()).hex() == PLAIN_HASH


@pytest.mark.parametrize(
    ("was", "becomes", "place", "message"),
    [
        ("Europe/Berlin", "Europe/Atlantis", "line 7,", "no time zone"),
        ("Europe/Berlin", "../secret", "line 7,", "no time zone"),
        ("purpose: cost", "purpose: gift", "line 3,", "'purpose' is"),
        ("to: 06:00", "to: 22:00", "line 9,", "'to' is not 'from'"),
        ("to: 06:00", "to: 25:00", "line 9,", "'to' is 00:00:01 to 24:00"),
        ("[mon, fri]", "[mon, someday]", "line 10,", "none of mon"),
        ("time_window: night", "time_window: dawn", "line 13,", "no time window"),
        ("factor: 0.5", "factor: -0.5", "line 12,", "'factor' is a decimal"),
        ("factor: 0.5", "factor: 1001", "line 12,", "'factor' is 0 to 1000"),
        ("service_tier: flex", "service_tier: '*'", "line 12,", "'*' is for"),
        ("[parent_class, base_model, suspense]", "[somehow]", "line 14,", "'fallback' is"),
        ("maximum: 1000", "maximum: 10", "line 15,", "not below 'minimum'"),
        ("boundary: gte", "boundary: about", "line 24,", "'boundary' is"),
        ("mode: whole_request", "mode: volume", "line 23,", "'mode' of tiers by context_length"),
        ("over: 200_000", "over: 0", "line 25,", "from 1 to"),
        ("price: 6.00}", "price: -6.00}", "line 25,", "not negative"),
        (
            "mode: graduated, steps: [{over: 1_000_000, price: 12.00}]",
            "mode: volume, steps: [{over: 1_000_000, price: 16.00}]",
            "line 30,",
            "prices only fall",
        ),
        ("included: 1000", "included: 0", "line 31,", "1 or more"),
        ("package: 10,", "package: 10, per: 1000,", "line 35,", "no 'per'"),
        ("surcharge: true, percentage: 10", "surcharge: true", "line 37,", "one of them"),
        ("rounding: half_even", "rounding: exact", "line 34,", "no whole number"),
    ],
)
def test_what_a_feature_must_keep_is_named_by_its_place(
    was: str, becomes: str, place: str, message: str
) -> None:
    assert was in FULL
    found = problems(FULL.replace(was, becomes, 1))
    assert any(text.startswith(place) and message in text for text in found), found


def test_lines_for_windows_that_never_meet_are_no_rivals() -> None:
    text = CARD.replace(
        "lines:",
        "time_windows: {day: {from: 06:00, to: 22:00}, night: {from: 22:00, to: 06:00}}\nlines:",
    ).replace("direction: out}", "direction: out, time_window: day}")
    night = "  - {id: n, match: {model: tiny, direction: out, time_window: night}, price: 1}\n"
    parse_card(text + night)
    late = text.replace("to: 22:00", "to: 22:00:01")
    assert any("equal specificity" in found for found in problems(late + night))


def test_a_large_card_is_not_asked_all_its_lines_for_each_new_leaf(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalogue = Catalogue([published_card(0, parse_card(CARD), 1, b"")])
    context = Context("tiny", "tiny", "", "standard", "")
    key = LeafKey("token", "in", "text", "none", "default", "plain", "")
    segment = catalogue.segment(T0_US)
    asked: list[Line] = []
    # `append` gives None, which is as good as False.
    monkeypatch.setattr(Line, "is_metered", property(asked.append))
    again = catalogue.price("", "USD", segment, context._replace(region="eu"), key)
    assert again is not None
    assert set(asked) == {again.line}
