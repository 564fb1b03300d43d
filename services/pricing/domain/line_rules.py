"""What every line of a card must keep, alone and beside the others. See card_rules.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import combinations
from math import prod
from typing import Final

from pricing.domain import card as cards
from pricing.domain import dimensions
from pricing.domain.card import Card, Line, Multiplier, Tiers
from pricing.domain.selection import Apart, compatible, may_apply, rivals, windows_apart
from pricing.domain.text import is_plain

MAX_UNIT_PRICE_PICO: Final = 10**18
MAX_PRIORITY: Final = 1_000
MAX_WORD_CHARS: Final = 256
MAX_STEPS: Final = 64
MAX_MULTIPLIERS: Final = 64
MAX_SURCHARGES: Final = 64
MAX_UNITS: Final = 10**15
MAX_FACTOR: Final = 1_000
MAX_DENOMINATOR: Final = 10**12
MAX_PERCENTAGE: Final = 10_000
# Every set of factors that may meet is tried; of so many there are 256.
_MAX_TRIED: Final = 8
MAY_BE_EMPTY: Final = ("adapter", "region", "attribute")
ROUNDINGS: Final = (cards.EXACT, cards.HALF_EVEN, cards.UP, cards.DOWN)

LINE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")

Path = tuple[str | int, ...]
Found = tuple[Path, str]


def problems(card: Card) -> Iterator[Found]:
    """Every rule that a card's lines and multipliers break."""
    names = frozenset(window.name for window in card.windows)
    yield from _multipliers(("multipliers",), card.multipliers, names)
    broken: set[int] = set()
    for index, line in enumerate(card.lines):
        for path, message in _line(line, names):
            broken.add(index)
            yield ("lines", index, *path), message
    counts = Counter(line.line_id for line in card.lines)
    seen: set[str] = set()
    for index, line in enumerate(card.lines):
        if counts[line.line_id] > 1 and line.line_id in seen:
            broken.add(index)
            yield (
                ("lines", index, "id"),
                f"line id {line.line_id!r} stands twice; ids are unique in a card",
            )
        seen.add(line.line_id)
    sound = [(index, line) for index, line in enumerate(card.lines) if index not in broken]
    apart = windows_apart(card)
    for index, line, rival in rivals(sound, apart):
        yield (
            ("lines", index),
            f"line {line.line_id!r} and line {rival.line_id!r} can match the same"
            " leaf with equal specificity; name one more dimension or set 'priority'",
        )
    surcharges = [index for index, line in enumerate(card.lines) if line.surcharge]
    if len(surcharges) > MAX_SURCHARGES:
        yield ("lines", surcharges[-1]), f"a card has at most {MAX_SURCHARGES} surcharges"
        return
    yield from _factors(card, sound)
    yield from _percentages_over(sound)


def priority(path: Path, value: int) -> Iterator[Found]:
    """The rule of a priority, of a card or of a line."""
    if not -MAX_PRIORITY <= value <= MAX_PRIORITY:
        yield path, f"'priority' is a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"


def _line(line: Line, windows: frozenset[str]) -> Iterator[Found]:
    if not LINE_ID.fullmatch(line.line_id):
        yield (
            ("id",),
            "'id' is 1-128 of letters, digits and . _ : / @ + - and begins with a letter or"
            f" digit, not {line.line_id[:70]!r}",
        )
    if line.unit not in dimensions.UNIT_BY_WORD:
        known = ", ".join(dimensions.UNIT_BY_WORD)
        yield ("unit",), f"'unit' is one of {known}, not {line.unit!r}"
    yield from _price(("price",), line.price_pico)
    yield from priority(("priority",), line.priority)
    yield from _match(("match",), line.match, windows)
    if line.tiers is not None:
        yield from _tiers(line, line.tiers)
    yield from _amounts(line)
    yield from _multipliers(("multipliers",), line.multipliers, windows)
    if line.rounding not in ROUNDINGS:
        yield ("rounding",), f"'rounding' is one of {', '.join(ROUNDINGS)}"
    if line.surcharge:
        yield from _surcharge(line)


def _price(path: Path, price_pico: int) -> Iterator[Found]:
    if price_pico < 0:
        yield path, "'price' is not negative; credit is given by a grant"
    elif price_pico > MAX_UNIT_PRICE_PICO:
        yield path, "'price' is over 1,000,000 for one unit; check 'per'"


def _match(at: Path, match: Iterable[tuple[str, str]], windows: frozenset[str]) -> Iterator[Found]:
    for name, word in match:
        path = (*at, name)
        words = dimensions.ENUM_WORDS.get(name)
        if name not in dimensions.MATCH_FIELDS:
            yield path, f"a match has no {name!r}; it has {', '.join(dimensions.MATCH_FIELDS)}"
        elif name == dimensions.TIME_WINDOW:
            if word not in windows:
                yield path, f"the card has no time window {word[:40]!r}"
        elif words is not None and word not in words:
            allowed = ", ".join(sorted(words))
            yield path, f"{name!r} is one of {allowed}, not {word!r}"
        elif word == cards.WILD and name not in dimensions.WILD_FIELDS:
            yield path, f"'*' is for {', '.join(sorted(dimensions.WILD_FIELDS))}; leave it out"
        elif not word and name not in MAY_BE_EMPTY:
            yield path, f"{name!r} has no value; leave it out to match all"
        elif not is_plain(word) or len(word) > MAX_WORD_CHARS:
            yield (
                path,
                f"{name!r} is at most {MAX_WORD_CHARS} characters without control characters",
            )


def _tiers(line: Line, tiers: Tiers) -> Iterator[Found]:
    modes = {
        cards.CONTEXT_LENGTH: (cards.WHOLE_REQUEST, cards.GRADUATED),
        cards.MONTHLY_VOLUME: (cards.GRADUATED, cards.VOLUME),
    }
    if tiers.by not in modes:
        yield ("tiers", "by"), f"'by' is {' or '.join(modes)}, not {tiers.by[:40]!r}"
        return
    if tiers.mode not in modes[tiers.by]:
        allowed = " or ".join(modes[tiers.by])
        yield ("tiers", "mode"), f"'mode' of tiers by {tiers.by} is {allowed}, not {tiers.mode!r}"
    if tiers.boundary not in (cards.GREATER, cards.GREATER_OR_EQUAL):
        yield ("tiers", "boundary"), f"'boundary' is {cards.GREATER} or {cards.GREATER_OR_EQUAL}"
    overs = [step.over for step in tiers.steps]
    if not overs or len(overs) > MAX_STEPS:
        yield ("tiers", "steps"), f"'steps' is a list of 1 to {MAX_STEPS} steps"
    elif overs != sorted(set(overs)) or not 0 < overs[0] <= overs[-1] <= MAX_UNITS:
        yield ("tiers", "steps"), f"each 'over' is more than the one before, from 1 to {MAX_UNITS}"
    for index, step in enumerate(tiers.steps):
        yield from _price(("tiers", "steps", index, "price"), step.price_pico)
    prices = [line.price_pico, *(step.price_pico for step in tiers.steps)]
    if tiers.mode == cards.VOLUME and prices != sorted(prices, reverse=True):
        yield (
            ("tiers", "mode"),
            "'volume' prices the whole month by its volume, so its prices only fall; a price"
            " that rises would raise what was charged before: use 'graduated'",
        )
    if tiers.by == cards.CONTEXT_LENGTH and line.unit != "token":
        yield ("tiers", "by"), "tiers by context_length are for unit token"
    if line.package_units:
        yield ("package",), "'package' does not go with 'tiers'"
    if tiers.by == cards.CONTEXT_LENGTH and line.included_units:
        yield ("included",), "'included' does not go with tiers by context_length"


def _amounts(line: Line) -> Iterator[Found]:
    for name, units in (
        ("package", line.package_units),
        ("minimum_units", line.minimum_units),
        ("included", line.included_units),
    ):
        if not 0 <= units <= MAX_UNITS:
            yield (name,), f"{name!r} is a whole number from 1 to {MAX_UNITS}"
    if not 0 <= line.minimum_pico <= MAX_UNIT_PRICE_PICO:
        yield ("minimum_charge",), "'minimum_charge' is 0 to 1,000,000"
    if not 0 <= line.percentage <= MAX_PERCENTAGE:
        yield ("percentage",), f"'percentage' is 0 to {MAX_PERCENTAGE}"
    elif line.percentage.denominator > MAX_DENOMINATOR:
        yield ("percentage",), "'percentage' has at most 12 decimals"
    if line.meter and not LINE_ID.fullmatch(line.meter):
        yield ("meter",), "'meter' is 1-128 of letters, digits and . _ : / @ + -"
    if line.meter and not line.is_metered:
        yield ("meter",), "'meter' is for lines with 'included' or tiers by monthly_volume"
    if line.is_metered and (line.package_units or line.minimum_units or line.minimum_pico):
        yield (
            (),
            "'package' and minimums are of one request; they do not go with 'included' or"
            " tiers by monthly_volume",
        )


def _surcharge(line: Line) -> Iterator[Found]:
    if line.tiers is not None or line.package_units or line.minimum_units or line.minimum_pico:
        yield ("surcharge",), "a surcharge has a 'price' or a 'percentage', and no more"
    if line.included_units:
        yield ("surcharge",), "a surcharge has no 'included'"
    if bool(line.price_pico) == bool(line.percentage):
        yield ("surcharge",), "a surcharge has a 'price' or a 'percentage', one of them"


def _multipliers(
    at: Path, multipliers: tuple[Multiplier, ...], windows: frozenset[str]
) -> Iterator[Found]:
    if len(multipliers) > MAX_MULTIPLIERS:
        yield at, f"there are at most {MAX_MULTIPLIERS} multipliers"
    counts = Counter(one.multiplier_id for one in multipliers)
    for index, one in enumerate(multipliers):
        path = (*at, index)
        if not LINE_ID.fullmatch(one.multiplier_id) or counts[one.multiplier_id] > 1:
            yield (*path, "id"), "'id' is 1-128 of letters, digits and . _ : / @ + -, and unique"
        if not 0 <= one.factor <= MAX_FACTOR or one.factor.denominator > MAX_DENOMINATOR:
            yield (
                (*path, "factor"),
                f"'factor' is 0 to {MAX_FACTOR}, a decimal of at most 12 places or a ratio",
            )
        if not one.match:
            yield (*path, "match"), "a multiplier's 'match' names at least one dimension"
        yield from _match((*path, "match"), one.match, windows)


def _prices(line: Line) -> list[int]:
    steps = line.tiers.steps if line.tiers is not None else ()
    return [line.price_pico, *(step.price_pico for step in steps)]


_Tried = list[tuple[str, int]]
"""Factors that may meet, as text, and what a price must then be a multiple of."""


def _factors(card: Card, lines: list[tuple[int, Line]]) -> Iterator[Found]:
    """A price that factors leave between two pico-units needs a declared rounding."""
    apart = windows_apart(card)
    tried: dict[tuple[tuple[Multiplier, ...], Fraction], _Tried] = {}
    for index, line in lines:
        if line.rounding != cards.EXACT:
            continue
        shared = () if line.surcharge else card.multipliers
        factors = tuple(one for one in (*shared, *line.multipliers) if may_apply(one, line, apart))
        raised = Fraction(0) if line.surcharge else line.percentage
        found = tried.get((factors, raised))
        if found is None:
            found = tried[factors, raised] = _products(factors, 1 + raised / 100, apart)
        for text, divisor in found:
            if any(price % divisor for price in _prices(line)):
                yield (
                    ("lines", index, "rounding"),
                    f"with factor {text} the price of line {line.line_id!r} is no whole number"
                    f" of pico-units; say 'rounding', one of {', '.join(ROUNDINGS[1:])}",
                )
                break


def _products(factors: tuple[Multiplier, ...], raised: Fraction, apart: Apart) -> _Tried:
    if len(factors) > _MAX_TRIED:
        # Too many sets to try: the product of all denominators is a multiple of each set's.
        whole = Fraction(1, prod(one.factor.denominator for one in factors)) * raised
        return [("of some of them", whole.denominator)]
    return [
        (" x ".join(str(one.factor) for one in some) or str(raised), product.denominator)
        for count in range(len(factors) + 1)
        for some in combinations(factors, count)
        if all(compatible(a.match, b.match, apart) for a, b in combinations(some, 2))
        for product in (prod((one.factor for one in some), start=raised),)
        if product.denominator > 1
    ]


def _percentages_over(lines: list[tuple[int, Line]]) -> Iterator[Found]:
    """A percentage is of a price for one unit: what it may meet must have one."""
    uneven = [
        line
        for _, line in lines
        if not line.surcharge
        and (
            line.is_metered
            or line.package_units
            or line.minimum_units
            or line.minimum_pico
            or (line.tiers is not None and line.tiers.mode == cards.GRADUATED)
        )
    ]
    for index, line in lines:
        if not (line.surcharge and line.percentage):
            continue
        for other in uneven:
            if other.unit == line.unit and compatible(line.match, other.match, frozenset()):
                yield (
                    ("lines", index, "percentage"),
                    f"the surcharge can meet line {other.line_id!r}, which has no price for one"
                    " unit; put 'percentage' into that line",
                )
                break
