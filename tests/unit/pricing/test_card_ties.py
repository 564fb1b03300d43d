"""Cards that tie are found on every leaf, and at every hour, that both could price."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.pricing.builders import T0_US
from tests.unit.pricing.test_what_if import MODELS, found, yaml

from pricing.domain.card import Line, Match
from pricing.domain.card_yaml import parse_card
from pricing.domain.catalogue import Catalogue, published_card
from pricing.domain.dimensions import Context, LeafKey
from pricing.domain.line_pairs import meeting
from pricing.domain.price_list import rated_one_each
from pricing.domain.selection import compatible


def tied(draft: str, *others: str) -> list[str]:
    """Messages of what ties a draft with published cards."""
    return found(draft, *others).get("AMBIGUOUS", [])


def test_cards_tie_that_price_the_same_at_one_time_and_that_nothing_orders() -> None:
    base = yaml(1, 2).replace("price: ", "per: 1000000, price: ")
    twin = base.replace("card: c", "card: d")
    lines = len(parse_card(twin).lines)
    assert len(tied(twin, base)) == lines
    # What is told apart: by priority, by who it is for, by when, by what for.
    assert tied(twin.replace("currency: USD", "currency: USD\npriority: 1"), base) == []
    assert tied(twin.replace("currency: USD", "currency: USD\naccounts: [acme]"), base) == []
    assert tied(twin.replace("currency: USD", "currency: USD\npurpose: cost"), base) == []
    assert tied(twin.replace("currency: USD", "currency: EUR"), base) == []
    ended = base.replace("lines:", "effective_to: 2026-06-01T00:00:00Z\nlines:")
    assert tied(twin.replace("2026-01-01", "2026-06-01"), ended) == []
    assert len(tied(twin.replace("2026-01-01", "2026-05-31"), ended)) == lines
    # A card that begins while the draft applies ties from then on.
    assert len(tied(twin, base.replace("2026-01-01", "2026-09-01"))) == lines
    until = twin.replace("lines:", "effective_to: 2026-09-01T00:00:00Z\nlines:")
    assert tied(until, base.replace("2026-01-01", "2026-09-01")) == []
    fee = "card: d\ncurrency: USD\neffective_from: 2026-01-01T00:00:00Z\nlines:\n"
    fee += "  - {id: own, match: {model: other}, price: 1}\n"
    fee += f"  - {{id: fee, surcharge: true, match: {{model: {MODELS[0]}}}, percentage: 5}}\n"
    assert tied(fee, base) == []
    # A later version of the other that says which goes first says it for both.
    assert tied(twin, base, base.replace("currency: USD", "currency: USD\npriority: 1")) == []


def card_of(name: str, line: str, head: str = "") -> str:
    return (
        f"card: {name}\ncurrency: USD\neffective_from: 2026-01-01T00:00:00Z\n{head}"
        f"lines:\n  - {{id: {name}, {line}, per: 1000000, price: 1}}\n"
    )


@pytest.mark.parametrize(
    ("wider", "narrower"),
    [
        ("direction: in", "model: tiny, direction: in"),
        ("model: tiny, service_tier: any", "model: tiny, service_tier: batch"),
    ],
)
def test_a_line_for_more_ties_with_one_for_less_whichever_comes_first(
    wider: str, narrower: str
) -> None:
    wide = card_of("wide", f"match: {{{wider}}}")
    narrow = card_of("narrow", f"match: {{{narrower}}}")
    assert len(tied(narrow, wide)) == len(tied(wide, narrow)) == 1


@pytest.mark.parametrize("name", ["a", "z"])
def test_a_line_goes_before_a_fallback_and_does_not_tie_with_it(name: str) -> None:
    base = card_of(name, "match: {model: llama, direction: in}", "fallback: [base_model]\n")
    tuned = card_of("m", "match: {model: tuned, base_model: llama, direction: in}")
    assert tied(tuned, base) == tied(base, tuned) == []


def test_a_tie_that_a_third_card_hides_for_a_while_is_one_all_the_same() -> None:
    line = "match: {model: tiny, direction: in}"
    above = "effective_to: 2027-06-01T00:00:00Z\npriority: 1\n"
    assert len(tied(card_of("d", line), card_of("c", line), card_of("p", line, above))) == 1
    for_ever = card_of("p", line, "priority: 1\n")
    assert tied(card_of("d", line), card_of("c", line), for_ever) == []


def test_cards_of_accounts_tie_where_they_share_one() -> None:
    base = yaml(1, 2).replace("price: ", "per: 1000000, price: ")
    own = base.replace("currency: USD", "currency: USD\naccounts: [acme, globex]")
    other = base.replace("card: c", "card: d")
    shared = other.replace("currency: USD", "currency: USD\naccounts: [birch, globex]")
    assert all("account 'globex'" in message for message in tied(shared, own))
    assert tied(shared, own) != []
    apart = other.replace("currency: USD", "currency: USD\naccounts: [birch]")
    assert tied(apart, own) == []


@pytest.mark.parametrize(
    ("one", "other", "leaf"),
    [
        ("model: tiny, service_tier: any", "direction: in, service_tier: batch", "(batch)"),
        ("model: tiny", "direction: out", "'tiny' token out"),
        ("model: tiny, direction: in", "direction: in, region: eu", "'tiny' token in"),
        ("model: tiny", "token_kind: reasoning", "'tiny' token out reasoning"),
        ("model: tiny, modality: image", "cache_ttl: 1h", "'tiny' token in image write 1h"),
        ("model: tiny, region: eu", 'direction: in, region: "*", modality: audio', "in audio"),
        ("model: tiny, adapter: a", "model: tiny, direction: out", "'tiny' token out"),
    ],
)
def test_cards_tie_on_a_leaf_that_no_line_names_alone(one: str, other: str, leaf: str) -> None:
    first, second = card_of("c", f"match: {{{one}}}"), card_of("d", f"match: {{{other}}}")
    for messages in (tied(first, second), tied(second, first)):
        assert len(messages) == 1
        assert leaf in messages[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # What no usage has.
        ("model: tiny, direction: out", "cache_use: read"),
        ("model: tiny, direction: in", "token_kind: reasoning"),
        ("model: tiny, direction: out", "token_kind: embedding"),
        ("model: tiny, cache_use: read", "cache_ttl: 1h"),
        # What is an adapter of what no card says.
        ("model: tiny, direction: in", 'adapter: "*"'),
        ("model: tiny", "base_model: llama, direction: out"),
        # What contradicts itself.
        ("model: tiny, region: eu", "direction: out, region: us"),
    ],
)
def test_cards_do_not_tie_on_what_cannot_be(one: str, other: str) -> None:
    first, second = card_of("c", f"match: {{{one}}}"), card_of("d", f"match: {{{other}}}")
    assert tied(first, second) == tied(second, first) == []


def test_a_factor_for_a_tier_ties_with_a_line_of_that_tier() -> None:
    factor = "multipliers: [{id: half, match: {service_tier: batch}, factor: 0.5}]\n"
    by_factor = card_of("c", "match: {model: tiny, direction: out}", factor)
    by_line = card_of("d", "match: {direction: out, service_tier: batch}")
    assert len(tied(by_factor, by_line)) == len(tied(by_line, by_factor)) == 1


@pytest.mark.parametrize(
    ("zone", "start", "end", "ties"),
    [
        ("UTC", "06:00", "22:00", 0),
        ("UTC", "06:00", "22:01", 1),
        ("UTC", "22:30", "22:31", 1),
        ("Europe/Berlin", "06:00", "22:00", 1),
        ("Europe/Berlin", "07:00", "23:00", 0),
    ],
)
def test_hours_that_meet_tie_and_others_do_not(zone: str, start: str, end: str, ties: int) -> None:
    """The night is from 22:00 to 06:00 UTC; Berlin is an hour ahead while the cards last."""
    until = "effective_to: 2026-01-31T00:00:00Z\n"

    def hourly(name: str, clock: str, first: str, last: str) -> str:
        head = f"timezone: {clock}\ntime_windows: {{w: {{from: '{first}', to: '{last}'}}}}\n"
        return card_of(name, "match: {model: tiny, direction: in, time_window: w}", until + head)

    night, other = hourly("c", "UTC", "22:00", "06:00"), hourly("d", zone, start, end)
    assert len(tied(night, other)) == len(tied(other, night)) == ties


WORDS = {
    "model": ("tiny", "large"),
    "service_tier": ("any", "batch"),
    "region": ("*", "eu", "us"),
    "direction": ("in", "out"),
    "cache_use": ("none", "read", "write"),
}
# A line that itself asks for what no usage has is believed.
MATCHES = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(words) for name, words in WORDS.items()}
).filter(lambda named: named.get("direction") != "out" or named.get("cache_use", "none") == "none")


@given(MATCHES, MATCHES)
def test_cards_of_a_line_each_tie_where_a_leaf_is_priced_by_both(
    one: dict[str, str], other: dict[str, str]
) -> None:
    """Beside every leaf of every request there is, asked of each card by itself."""
    texts = [
        card_of(name, "match: {" + ", ".join(f"{key}: '{word}'" for key, word in match.items()))
        for name, match in (("c", one), ("d", other))
    ]
    texts = [text.replace(", per:", "}, per:") for text in texts]
    catalogues = [Catalogue([published_card(0, parse_card(text), 1, b"")]) for text in texts]
    both = any(
        all(
            rated_one_each(catalogue, "", "USD", context, T0_US, (key,))[0].priced is not None
            for catalogue in catalogues
        )
        for context, key in every_leaf()
    )
    assert bool(tied(*texts)) == bool(tied(*reversed(texts))) == both


def every_leaf() -> list[tuple[Context, LeafKey]]:
    return [
        (
            Context(model, model, "", tier, region),
            LeafKey("token", direction, "text", cache_use, "default", "plain", ""),
        )
        for model in (*WORDS["model"], "other")
        for tier in ("standard", "batch", "flex")
        for region in ("", "eu", "us", "else")
        for direction, cache_uses in (("in", WORDS["cache_use"]), ("out", ("none",)))
        for cache_use in cache_uses
    ]


@given(st.lists(MATCHES, max_size=8), st.lists(MATCHES, max_size=8))
def test_lines_that_meet_are_those_that_do_not_contradict_each_other(
    ones: list[dict[str, str]], others: list[dict[str, str]]
) -> None:
    lines, rivals = (
        [Line(str(at), "token", tuple(sorted(match.items())), 1) for at, match in enumerate(some)]
        for some in (ones, others)
    )
    plain = [(a, b) for b in rivals for a in lines if compatible(a.match, b.match, frozenset())]
    found = [pair for pair in meeting(lines, rivals) if compatible(*matches_of(pair), frozenset())]
    assert sorted(map(ids_of, found)) == sorted(map(ids_of, plain))


def matches_of(pair: tuple[Line, Line]) -> tuple[Match, Match]:
    return pair[0].match, pair[1].match


def ids_of(pair: tuple[Line, Line]) -> tuple[str, str]:
    return pair[0].line_id, pair[1].line_id
