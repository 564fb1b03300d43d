"""Rate cards: YAML in, one canonical document and its hash out.

A card is immutable once hashed; a change is a new version. Prices are kept as
whole pico-units for one unit, so what is charged is one multiplication.

Selection: of the lines of a card that match a leaf, the one with the highest
`priority` wins, then the one that names more dimensions. Two lines that could
tie on some leaf are refused when the card is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from kernel.money import MoneyError, parse_ratio
from pricing.domain.dimensions import (
    ENUM_WORDS,
    MATCH_FIELDS,
    OUTCOME_BY_WORD,
    UNIT_BY_WORD,
    Context,
    LeafKey,
)
from pricing.domain.document import DocumentError, Node, Problem, parse_document

MAX_LINES: Final = 20_000
MAX_UNIT_PRICE_PICO: Final = 10**18
RULES: Final = ("generated", "delivered", "none")

DEFAULT_OUTCOMES: Final[dict[str, str]] = {
    # What the engine did for the caller's request is charged, also when the
    # caller left: the work was done on their word. A failure of ours is not.
    "complete": "generated",
    "empty": "generated",
    "client_abort": "generated",
    "deadline": "generated",
    "safety_stop": "generated",
    "error_before_first_token": "none",
    "error_mid_stream": "delivered",
    "engine_lost": "delivered",
}

_ID: Final = re.compile(r"^[a-z0-9][a-z0-9._:/-]{0,63}$")
_TIME: Final = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)$")


@dataclass(frozen=True, slots=True)
class Line:
    """One price: what it matches and pico-units for one unit."""

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
    """A version of a rate card. Times are microseconds since the epoch."""

    card_id: str
    currency: str
    effective_from_us: int
    effective_to_us: int | None
    priority: int
    accounts: tuple[str, ...]
    outcomes: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]

    def document(self) -> bytes:
        """The canonical form: JSON, keys sorted, no spaces, UTF-8."""
        data = {
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
                    "price_pico": line.price_pico,
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
        return DEFAULT_OUTCOMES.get(outcome, "none")


def content_hash(document: bytes) -> bytes:
    """SHA-256 of a card's document."""
    return hashlib.sha256(document).digest()


def card_from_document(document: bytes) -> Card:
    """Read the canonical form back. Errors: ValueError when it is not one."""
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
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a rate card's document: {error!r}") from None
    if card.document() != document:
        raise ValueError("not a rate card's canonical document")
    return card


class _Reader:
    """Collects every problem of a card instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def wrong(self, node: Node, message: str) -> None:
        self.problems.append(node.problem(message))

    def known(self, node: Node, names: tuple[str, ...], what: str) -> None:
        for name, (key, _) in (node.fields or {}).items():
            if name not in names:
                self.wrong(key, f"{what} has no {name!r}; it has {', '.join(names)}")

    def text(self, node: Node, name: str, default: str | None = None) -> tuple[Node, str]:
        """A scalar under a name; a missing one is a problem unless there is a default."""
        value = node.get(name)
        if value is None:
            if default is None:
                self.wrong(node, f"{name!r} is missing")
            return node, default or ""
        if value.text is None:
            self.wrong(value, f"{name!r} must be one value, not a list or a mapping")
            return value, default or ""
        return value, value.text

    def ident(self, node: Node, name: str) -> str:
        value, text = self.text(node, name)
        if text and not _ID.match(text):
            self.wrong(
                value,
                f"{name!r} is 1-64 of a-z 0-9 . _ : / - and begins with a letter or digit,"
                f" not {text[:70]!r}",
            )
        return text

    def integer(self, node: Node, name: str, default: int, low: int, high: int) -> int:
        value, text = self.text(node, name, str(default))
        digits = text.replace("_", "")
        if not re.fullmatch(r"-?\d{1,12}", digits) or not low <= int(digits) <= high:
            self.wrong(value, f"{name!r} is a whole number from {low} to {high}, not {text!r}")
            return default
        return int(digits)

    def instant(self, node: Node, name: str) -> int | None:
        value = node.get(name)
        if value is None:
            return None
        text = value.text or ""
        try:
            if not _TIME.match(text):
                raise ValueError
            parsed = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            self.wrong(
                value,
                f"{name!r} is an RFC 3339 instant with its zone, such as 2026-01-31T00:00:00Z,"
                f" not {text[:40]!r}",
            )
            return None
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        delta = parsed - epoch
        return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


_CARD_FIELDS: Final = (
    "card",
    "currency",
    "effective_from",
    "effective_to",
    "priority",
    "accounts",
    "outcomes",
    "lines",
)
_LINE_FIELDS: Final = ("id", "match", "unit", "per", "price", "priority")


def _read_match(reader: _Reader, line: Node) -> tuple[tuple[str, str], ...]:
    node = line.get("match")
    if node is None:
        return ()
    if node.fields is None:
        reader.wrong(node, "'match' is a mapping such as {model: NAME, direction: in}")
        return ()
    reader.known(node, MATCH_FIELDS, "a match")
    match: dict[str, str] = {}
    for name in MATCH_FIELDS:
        value = node.get(name)
        if value is None:
            continue
        words = ENUM_WORDS.get(name)
        if value.text is None or (not value.text and name not in ("adapter", "region")):
            reader.wrong(value, f"{name!r} must be one value")
        elif words is not None and value.text not in words:
            allowed = ", ".join(sorted(words))
            reader.wrong(value, f"{name!r} is one of {allowed}, not {value.text!r}")
        else:
            match[name] = value.text
    return tuple(sorted(match.items()))


def _read_line(reader: _Reader, node: Node) -> Line | None:
    if node.fields is None:
        reader.wrong(node, "a line is a mapping with id, match, unit, per and price")
        return None
    before = len(reader.problems)
    reader.known(node, _LINE_FIELDS, "a line")
    line_id = reader.ident(node, "id")
    unit_node, unit = reader.text(node, "unit", "token")
    if unit not in UNIT_BY_WORD:
        reader.wrong(unit_node, f"'unit' is one of {', '.join(UNIT_BY_WORD)}, not {unit!r}")
    per_node, per_text = reader.text(node, "per", "1")
    per = per_text.replace("_", "")
    if per not in ("1", "1000", "1000000"):
        reader.wrong(per_node, f"'per' is 1, 1000 or 1000000, not {per_text!r}")
        per = "1"
    price_node, price_text = reader.text(node, "price")
    price_pico = 0
    if price_text:
        try:
            price_pico = parse_ratio(price_text, int(per))
        except MoneyError as error:
            reader.wrong(price_node, f"'price': {error}")
        if price_pico < 0:
            reader.wrong(price_node, "'price' is not negative; credit is given by a grant")
        if price_pico > MAX_UNIT_PRICE_PICO:
            reader.wrong(price_node, "'price' is over 1,000,000 for one unit; check 'per'")
    match = _read_match(reader, node)
    priority = reader.integer(node, "priority", 0, -1000, 1000)
    if len(reader.problems) > before:
        return None
    return Line(line_id, unit, match, price_pico, priority)


def _compatible(one: Line, other: Line) -> bool:
    """Tell whether some leaf could match both."""
    mine = dict(one.match)
    return all(mine.get(name, word) == word for name, word in other.match)


def _check_ambiguity(reader: _Reader, lines: list[tuple[Node, Line]]) -> None:
    # Lines that differ in unit, priority or count of dimensions never tie, so
    # only the rest is compared; by model first, so that a card of a thousand
    # models does not cost a million comparisons.
    groups: dict[tuple[str, tuple[int, int]], list[tuple[Node, Line]]] = {}
    for node, line in lines:
        groups.setdefault((line.unit, line.specificity), []).append((node, line))
    for group in groups.values():
        by_model: dict[str | None, list[tuple[Node, Line]]] = {}
        for node, line in group:
            model = dict(line.match).get("model")
            rivals = group if model is None else [*by_model.get(model, ()), *by_model.get(None, ())]
            for _, rival in rivals:
                if rival is line:
                    break
                if _compatible(line, rival):
                    reader.wrong(
                        node,
                        f"line {line.line_id!r} and line {rival.line_id!r} can match the same"
                        " leaf with equal specificity; name one more dimension or set 'priority'",
                    )
                    break
            by_model.setdefault(model, []).append((node, line))


def parse_card(text: str) -> Card:
    """Read a card's YAML. Errors: DocumentError with the place of every problem."""
    root = parse_document(text)
    reader = _Reader()
    if root.fields is None:
        raise DocumentError([root.problem("a card is a mapping that begins with 'card: NAME'")])
    reader.known(root, _CARD_FIELDS, "a card")
    card_id = reader.ident(root, "card")
    currency_node, currency = reader.text(root, "currency")
    if currency and not re.fullmatch(r"[A-Z]{3}", currency):
        reader.wrong(currency_node, f"'currency' is an ISO 4217 code such as USD, not {currency!r}")
    effective_from_us = reader.instant(root, "effective_from")
    if root.get("effective_from") is None:
        reader.wrong(root, "'effective_from' is missing: the instant the prices begin to apply")
    effective_to_us = reader.instant(root, "effective_to")
    to_node = root.get("effective_to")
    if (
        to_node is not None
        and effective_to_us is not None
        and effective_from_us is not None
        and effective_to_us <= effective_from_us
    ):
        reader.wrong(to_node, "'effective_to' is not after 'effective_from'")
    accounts = _read_accounts(reader, root)
    outcomes = _read_outcomes(reader, root)
    lines = _read_lines(reader, root)
    priority = reader.integer(root, "priority", 0, -1000, 1000)
    if reader.problems:
        raise DocumentError(sorted(reader.problems, key=lambda found: (found.line, found.column)))
    return Card(
        card_id,
        currency,
        effective_from_us or 0,
        effective_to_us,
        priority,
        accounts,
        outcomes,
        tuple(line for _, line in lines),
    )


def _read_accounts(reader: _Reader, root: Node) -> tuple[str, ...]:
    node = root.get("accounts")
    if node is None:
        return ()
    if node.items is None or any(not item.text for item in node.items):
        reader.wrong(node, "'accounts' is a list of account ids")
        return ()
    return tuple(sorted({item.text for item in node.items if item.text}))


def _read_outcomes(reader: _Reader, root: Node) -> tuple[tuple[str, str], ...]:
    outcomes = dict(DEFAULT_OUTCOMES)
    node = root.get("outcomes")
    if node is not None and node.fields is None:
        reader.wrong(node, "'outcomes' is a mapping such as {engine_lost: none}")
    elif node is not None:
        for word, (key, value) in (node.fields or {}).items():
            if word not in OUTCOME_BY_WORD:
                known = ", ".join(OUTCOME_BY_WORD)
                reader.wrong(key, f"there is no outcome {word!r}; there are {known}")
            elif value.text not in RULES:
                reader.wrong(value, f"an outcome's rule is one of {', '.join(RULES)}")
            else:
                outcomes[word] = value.text or ""
    return tuple(sorted(outcomes.items()))


def _read_lines(reader: _Reader, root: Node) -> list[tuple[Node, Line]]:
    node = root.get("lines")
    if node is None or not node.items:
        reader.wrong(node or root, "'lines' is a list with at least one line")
        return []
    if len(node.items) > MAX_LINES:
        reader.wrong(node, f"a card has at most {MAX_LINES} lines; split it")
        return []
    lines: list[tuple[Node, Line]] = []
    seen: set[str] = set()
    for item in node.items:
        line = _read_line(reader, item)
        if line is None:
            continue
        if line.line_id in seen:
            reader.wrong(item, f"line id {line.line_id!r} stands twice; ids are unique in a card")
            continue
        seen.add(line.line_id)
        lines.append((item, line))
    _check_ambiguity(reader, lines)
    return lines


def matches(line: Line, key: LeafKey, context: Context) -> bool:
    """Tell whether a line prices a leaf in a context."""
    if line.unit != key.unit:
        return False
    for name, word in line.match:
        actual = getattr(context, name, None)
        if actual is None:
            actual = getattr(key, name)
        if actual != word:
            return False
    return True
