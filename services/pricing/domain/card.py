"""A version of a rate card: the model, its canonical document and the document's hash.

A card is immutable once hashed; a change is a new version. Prices are whole
pico-units for one unit, or for one package, so that what is charged is one
multiplication; factors are exact rationals.

The document is what the control log keeps: JSON with sorted keys, no spaces,
UTF-8. Prices stand in it as text, because JSON's readers in other languages
round large numbers. What has its default is left out, so that a card that uses
little reads, and hashes, as it did before there was more.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from pricing.domain.outcomes import DEFAULT_OUTCOMES, NONE

FORMAT: Final = 1

CONTEXT_LENGTH: Final = "context_length"
MONTHLY_VOLUME: Final = "monthly_volume"
GRADUATED: Final = "graduated"
VOLUME: Final = "volume"
WHOLE_REQUEST: Final = "whole_request"
GREATER: Final = "gt"
GREATER_OR_EQUAL: Final = "gte"
EXACT: Final = "exact"
HALF_EVEN: Final = "half_even"
UP: Final = "up"
DOWN: Final = "down"
SELL: Final = "sell"
COST: Final = "cost"
BASE_MODEL: Final = "base_model"
PARENT_CLASS: Final = "parent_class"
UTC_ZONE: Final = "UTC"
DEFAULT_FALLBACK: Final = (BASE_MODEL,)

Match = tuple[tuple[str, str], ...]
"""(dimension, word) pairs, sorted; all must hold."""


@dataclass(frozen=True, slots=True)
class Step:
    """From beyond so many units on, another price."""

    over: int
    price_pico: int


@dataclass(frozen=True, slots=True)
class Tiers:
    """Prices by how much: the line's own price up to the first step, then each step's."""

    by: str
    mode: str
    boundary: str
    steps: tuple[Step, ...]

    def bounds(self) -> tuple[int, ...]:
        """First count that each step's price is for: one more than `over` where it is `gt`."""
        more = 1 if self.boundary == GREATER else 0
        return tuple(step.over + more for step in self.steps)


@dataclass(frozen=True, slots=True)
class Multiplier:
    """A factor on prices of what it matches. All that match apply."""

    multiplier_id: str
    match: Match
    factor: Fraction


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """Hours of some weekdays, by the card's clock. One over midnight is its first day's."""

    name: str
    days: tuple[int, ...]
    """Monday is 0."""
    start_s: int
    end_s: int
    """Second of the day that it ends before; not after `start_s`: of the next day."""


@dataclass(frozen=True, slots=True)
class Commitment:
    """The least and the most that an account is charged by a card for a calendar month."""

    minimum_pico: int
    maximum_pico: int | None


@dataclass(frozen=True, slots=True)
class Line:
    """One price: what it matches and pico-units for one unit, or for one package of units."""

    line_id: str
    unit: str
    match: Match
    price_pico: int
    priority: int = 0
    tiers: Tiers | None = None
    package_units: int = 0
    """Charged in whole packages of so many; 0: by the unit."""
    minimum_units: int = 0
    """What is charged at all is charged as so many units, at the least."""
    minimum_pico: int = 0
    """What is charged at all is charged so much, at the least."""
    included_units: int = 0
    """Of a calendar month, free."""
    meter: str = ""
    """What counts a month's units; lines that name one meter share it. Empty: the line's own."""
    percentage: Fraction = Fraction(0)
    """Per cent on top of the price; of a surcharge: of the price it is added to."""
    surcharge: bool = False
    """Charged on top of the line that prices a leaf, not instead of another."""
    multipliers: tuple[Multiplier, ...] = ()
    rounding: str = EXACT
    """How a price for one unit becomes whole pico-units, once factors are applied."""

    @property
    def specificity(self) -> tuple[int, int, int]:
        """What decides between lines that match the same leaf; higher wins."""
        wild = sum(word == WILD for _, word in self.match)
        return self.priority, len(self.match) - wild, wild

    @property
    def is_metered(self) -> bool:
        """Whether the price depends on what else was used in the month."""
        by_month = self.tiers is not None and self.tiers.by == MONTHLY_VOLUME
        return by_month or self.included_units > 0


WILD: Final = "*"
"""In a match, for adapter, region and attribute: any, but not none."""


@dataclass(frozen=True, slots=True)
class Card:
    """A version of a rate card. Times are microseconds since the epoch, `to` not included."""

    card_id: str
    currency: str
    effective_from_us: int
    effective_to_us: int | None
    priority: int
    accounts: tuple[str, ...]
    outcomes: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]
    purpose: str = SELL
    timezone: str = UTC_ZONE
    windows: tuple[TimeWindow, ...] = ()
    multipliers: tuple[Multiplier, ...] = ()
    fallback: tuple[str, ...] = DEFAULT_FALLBACK
    commitment: Commitment | None = None

    def document(self) -> bytes:
        """The canonical form."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "card": self.card_id,
            "currency": self.currency,
            "effective_from_us": self.effective_from_us,
            "effective_to_us": self.effective_to_us,
            "priority": self.priority,
            "accounts": list(self.accounts),
            "outcomes": dict(self.outcomes),
            "lines": [_line_data(line) for line in self.lines],
        }
        if self.purpose != SELL:
            data["purpose"] = self.purpose
        if self.timezone != UTC_ZONE:
            data["timezone"] = self.timezone
        if self.windows:
            data["windows"] = [
                {
                    "name": window.name,
                    "days": list(window.days),
                    "start_s": window.start_s,
                    "end_s": window.end_s,
                }
                for window in self.windows
            ]
        if self.multipliers:
            data["multipliers"] = _multipliers_data(self.multipliers)
        if self.fallback != DEFAULT_FALLBACK:
            data["fallback"] = list(self.fallback)
        if self.commitment is not None:
            most_pico = self.commitment.maximum_pico
            data["commitment"] = {
                "minimum_pico": str(self.commitment.minimum_pico),
                "maximum_pico": None if most_pico is None else str(most_pico),
            }
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def is_beside(self, other: Card) -> bool:
        """Whether both may be asked about one charge: cards of one purpose and one currency."""
        return self.purpose == other.purpose and self.currency == other.currency

    def outcome_rule(self, outcome: str) -> str:
        """Which of a leaf's counts is charged: generated, delivered or none."""
        for word, rule in self.outcomes:
            if word == outcome:
                return rule
        return DEFAULT_OUTCOMES.get(outcome, NONE)


def _multipliers_data(multipliers: tuple[Multiplier, ...]) -> list[dict[str, Any]]:
    return [
        {"id": one.multiplier_id, "match": dict(one.match), "factor": str(one.factor)}
        for one in multipliers
    ]


def _line_data(line: Line) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": line.line_id,
        "unit": line.unit,
        "match": dict(line.match),
        "price_pico": str(line.price_pico),
        "priority": line.priority,
    }
    if line.tiers is not None:
        data["tiers"] = {
            "by": line.tiers.by,
            "mode": line.tiers.mode,
            "boundary": line.tiers.boundary,
            "steps": [
                {"over": step.over, "price_pico": str(step.price_pico)} for step in line.tiers.steps
            ],
        }
    for name in ("package_units", "minimum_units", "included_units"):
        if getattr(line, name):
            data[name] = getattr(line, name)
    if line.minimum_pico:
        data["minimum_pico"] = str(line.minimum_pico)
    if line.meter:
        data["meter"] = line.meter
    if line.percentage:
        data["percentage"] = str(line.percentage)
    if line.surcharge:
        data["surcharge"] = True
    if line.multipliers:
        data["multipliers"] = _multipliers_data(line.multipliers)
    if line.rounding != EXACT:
        data["rounding"] = line.rounding
    return data


def content_hash(document: bytes) -> bytes:
    """SHA-256 of a card's document (32 bytes)."""
    return hashlib.sha256(document).digest()


def read_document(document: bytes) -> Card:
    """Read the shape of a canonical document; its rules are checked elsewhere (card_rules.py).

    Errors: ValueError when it is not the canonical document of a card of this format.
    """
    try:
        card = _card_of(json.loads(document))
        # One card, one document: what does not come back byte for byte is none.
        canonical = card.document()
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        ZeroDivisionError,
        OverflowError,
        RecursionError,
    ) as wrong:
        raise ValueError(f"not a rate card's document: {wrong!r}"[:300]) from None
    if canonical != document:
        raise ValueError("not the canonical document of a rate card of a format known here")
    return card


def _card_of(data: dict[str, Any]) -> Card:
    found = data.get("commitment")
    return Card(
        str(data["card"]),
        str(data["currency"]),
        int(data["effective_from_us"]),
        None if data["effective_to_us"] is None else int(data["effective_to_us"]),
        int(data["priority"]),
        tuple(str(account) for account in data["accounts"]),
        tuple(sorted((str(word), str(rule)) for word, rule in data["outcomes"].items())),
        tuple(_line_of(line) for line in data["lines"]),
        str(data.get("purpose", SELL)),
        str(data.get("timezone", UTC_ZONE)),
        tuple(
            TimeWindow(
                str(one["name"]),
                tuple(int(day) for day in one["days"]),
                int(one["start_s"]),
                int(one["end_s"]),
            )
            for one in data.get("windows", ())
        ),
        _multipliers_of(data),
        tuple(str(step) for step in data.get("fallback", DEFAULT_FALLBACK)),
        None
        if found is None
        else Commitment(
            int(found["minimum_pico"]),
            None if found["maximum_pico"] is None else int(found["maximum_pico"]),
        ),
    )


def _match_of(data: dict[str, Any]) -> Match:
    return tuple(sorted((str(name), str(word)) for name, word in data["match"].items()))


def _fraction_of(text: Any) -> Fraction:
    """An exact rational. Bounded before it is read: `1e999999` would take the memory."""
    if not isinstance(text, str) or len(text) > 80 or not set(text) <= set("0123456789/-"):
        raise ValueError("a factor is written NUMERATOR/DENOMINATOR")
    return Fraction(text)


def _multipliers_of(data: dict[str, Any]) -> tuple[Multiplier, ...]:
    return tuple(
        Multiplier(str(one["id"]), _match_of(one), _fraction_of(one["factor"]))
        for one in data.get("multipliers", ())
    )


def _line_of(data: dict[str, Any]) -> Line:
    found = data.get("tiers")
    tiers = None
    if found is not None:
        tiers = Tiers(
            str(found["by"]),
            str(found["mode"]),
            str(found["boundary"]),
            tuple(Step(int(step["over"]), int(step["price_pico"])) for step in found["steps"]),
        )
    return Line(
        str(data["id"]),
        str(data["unit"]),
        _match_of(data),
        int(data["price_pico"]),
        int(data["priority"]),
        tiers,
        int(data.get("package_units", 0)),
        int(data.get("minimum_units", 0)),
        int(data.get("minimum_pico", 0)),
        int(data.get("included_units", 0)),
        str(data.get("meter", "")),
        _fraction_of(data.get("percentage", "0")),
        bool(data.get("surcharge", False)),
        _multipliers_of(data),
        str(data.get("rounding", EXACT)),
    )
