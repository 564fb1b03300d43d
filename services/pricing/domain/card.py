"""A version of a rate card: the model, its canonical document and the document's hash.

A card is immutable once hashed; a change is a new version. Prices are whole
pico-units for one unit, so that what is charged is one multiplication.

The document is what the control log keeps: JSON with sorted keys, no spaces,
UTF-8. Prices stand in it as text, because JSON's readers in other languages
round large numbers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from pricing.domain.outcomes import DEFAULT_OUTCOMES, NONE

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Line:
    """One price: what it matches (dimension, word) and pico-units for one unit."""

    line_id: str
    unit: str
    match: tuple[tuple[str, str], ...]
    price_pico: int
    priority: int = 0

    @property
    def specificity(self) -> tuple[int, int]:
        """What decides between lines that match the same leaf; higher wins."""
        return self.priority, len(self.match)


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

    def document(self) -> bytes:
        """The canonical form."""
        data = {
            "format": FORMAT,
            "card": self.card_id,
            "currency": self.currency,
            "effective_from_us": self.effective_from_us,
            "effective_to_us": self.effective_to_us,
            "priority": self.priority,
            "accounts": list(self.accounts),
            "outcomes": dict(self.outcomes),
            "lines": [
                {
                    "id": line.line_id,
                    "unit": line.unit,
                    "match": dict(line.match),
                    "price_pico": str(line.price_pico),
                    "priority": line.priority,
                }
                for line in self.lines
            ],
        }
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def outcome_rule(self, outcome: str) -> str:
        """Which of a leaf's counts is charged: generated, delivered or none."""
        for word, rule in self.outcomes:
            if word == outcome:
                return rule
        return DEFAULT_OUTCOMES.get(outcome, NONE)


def content_hash(document: bytes) -> bytes:
    """SHA-256 of a card's document (32 bytes)."""
    return hashlib.sha256(document).digest()


def read_document(document: bytes) -> Card:
    """Read the shape of a canonical document; its rules are checked elsewhere (card_rules.py).

    Errors: ValueError when it is not the canonical document of a card of this format.
    """
    try:
        data: dict[str, Any] = json.loads(document)
        card = Card(
            str(data["card"]),
            str(data["currency"]),
            int(data["effective_from_us"]),
            None if data["effective_to_us"] is None else int(data["effective_to_us"]),
            int(data["priority"]),
            tuple(str(account) for account in data["accounts"]),
            tuple(sorted((str(word), str(rule)) for word, rule in data["outcomes"].items())),
            tuple(
                Line(
                    str(line["id"]),
                    str(line["unit"]),
                    tuple(sorted((str(name), str(word)) for name, word in line["match"].items())),
                    int(line["price_pico"]),
                    int(line["priority"]),
                )
                for line in data["lines"]
            ),
        )
        # One card, one document: what does not come back byte for byte is none.
        canonical = card.document()
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as wrong:
        raise ValueError(f"not a rate card's document: {wrong!r}"[:300]) from None
    if canonical != document:
        raise ValueError("not the canonical document of a rate card of a format known here")
    return card
