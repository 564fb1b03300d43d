"""Rate cards as people write them: YAML in, a card out, or every problem with its line and column.

Owns the YAML's own words (`effective_from`, `per`, `service_tier: any`). The
rules that every card keeps are card_rules.py's; this module finds the place
in the text for each that is broken.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from kernel.money import MoneyError, parse_ratio
from pricing.domain import card_rules
from pricing.domain.card import Card, Line
from pricing.domain.dimensions import ANY, MATCH_FIELDS, STANDARD_TIER
from pricing.domain.document import DocumentError, Node, Problem, parse_document
from pricing.domain.outcomes import DEFAULT_OUTCOMES

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
_PER: Final = ("1", "1000", "1000000")
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_INTEGER: Final = re.compile(r"-?[0-9]{1,12}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class _Reader:
    """Collects every problem of a document instead of stopping at the first."""

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

    def integer(self, node: Node, name: str, default: int) -> int:
        value, text = self.text(node, name, str(default))
        digits = text.replace("_", "")
        if not _INTEGER.fullmatch(digits):
            self.wrong(value, f"{name!r} is a whole number, not {text[:40]!r}")
            return default
        return int(digits)

    def instant_us(self, node: Node, name: str) -> int | None:
        value = node.get(name)
        if value is None:
            return None
        text = value.text or ""
        try:
            if not _TIME.fullmatch(text):
                raise ValueError
            delta = datetime.fromisoformat(text).astimezone(UTC) - _EPOCH
        except (ValueError, OverflowError):
            self.wrong(
                value,
                f"{name!r} is an RFC 3339 instant with its zone, such as 2026-01-31T00:00:00Z,"
                f" not {text[:40]!r}",
            )
            return None
        return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def parse_card(text: str) -> Card:
    """Read a card's YAML. Errors: DocumentError with the place of every problem."""
    root = parse_document(text)
    reader = _Reader()
    if root.fields is None:
        raise DocumentError([root.problem("a card is a mapping that begins with 'card: NAME'")])
    reader.known(root, _CARD_FIELDS, "a card")
    effective_from_us = reader.instant_us(root, "effective_from")
    if root.get("effective_from") is None:
        reader.wrong(root, "'effective_from' is missing: the instant the prices begin to apply")
    items = _line_items(reader, root)
    lines = [(place, line) for place, item in items if (line := _read_line(reader, item))]
    card = Card(
        reader.text(root, "card")[1],
        reader.text(root, "currency")[1],
        effective_from_us or 0,
        reader.instant_us(root, "effective_to"),
        reader.integer(root, "priority", 0),
        _read_accounts(reader, root),
        _read_outcomes(reader, root),
        tuple(line for _, line in lines),
    )
    for path, message in card_rules.problems(card):
        # A value that could not be read has been named; its stand-in's faults are not news.
        node = _node_at(root, path, [place for place, _ in lines])
        if node is not None and not (path == ("lines",) and not card.lines and items):
            reader.wrong(node, message)
    if reader.problems:
        raise DocumentError(
            sorted(set(reader.problems), key=lambda found: (found.line, found.column))
        )
    return card


def _node_at(root: Node, path: card_rules.Path, places: list[int]) -> Node | None:
    """The deepest node that a path of card_rules leads to; None when its field is not there.

    Line numbers in a path count the lines that could be read; `places` has
    where each of them stands in the document.
    """
    if root.get(str(path[0])) is None and path[0] != "lines":
        return None
    node = root
    for depth, part in enumerate(path):
        below: Node | None
        if isinstance(part, int):
            index = places[part] if depth == 1 else part
            below = node.items[index] if node.items and index < len(node.items) else None
        else:
            below = node.get(part)
        if below is None:
            break
        node = below
    return node


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
        for word, (_, value) in (node.fields or {}).items():
            if value.text is None:
                reader.wrong(value, "an outcome's rule is one word")
            else:
                outcomes[word] = value.text
    return tuple(sorted(outcomes.items()))


def _line_items(reader: _Reader, root: Node) -> list[tuple[int, Node]]:
    node = root.get("lines")
    if node is None or not node.items:
        reader.wrong(node or root, "'lines' is a list with at least one line")
        return []
    if len(node.items) > card_rules.MAX_LINES:
        reader.wrong(node, f"a card has at most {card_rules.MAX_LINES} lines; split it")
        return []
    return list(enumerate(node.items))


def _read_line(reader: _Reader, node: Node) -> Line | None:
    """A line as far as it can be read; None when a part of it is no value at all."""
    if node.fields is None:
        reader.wrong(node, "a line is a mapping with id, match, unit, per and price")
        return None
    before = len(reader.problems)
    reader.known(node, _LINE_FIELDS, "a line")
    line_id = reader.text(node, "id")[1]
    unit = reader.text(node, "unit", "token")[1]
    per_node, per_text = reader.text(node, "per", "1")
    per = per_text.replace("_", "")
    if per not in _PER:
        reader.wrong(per_node, f"'per' is 1, 1000 or 1000000, not {per_text[:40]!r}")
    price_pico = _read_price(reader, node, int(per) if per in _PER else 1)
    match = _read_match(reader, node)
    priority = reader.integer(node, "priority", 0)
    if len(reader.problems) > before:
        return None
    return Line(line_id, unit, match, price_pico, priority)


def _read_price(reader: _Reader, node: Node, per: int) -> int:
    price_node, text = reader.text(node, "price")
    try:
        return parse_ratio(text, per)
    except MoneyError as error:
        if node.get("price") is not None:
            reader.wrong(price_node, f"'price': {error}")
        return 0


def _read_match(reader: _Reader, line: Node) -> tuple[tuple[str, str], ...]:
    match: dict[str, str] = {"service_tier": STANDARD_TIER}
    node = line.get("match")
    if node is not None and node.fields is None:
        reader.wrong(node, "'match' is a mapping such as {model: NAME, direction: in}")
    elif node is not None:
        reader.known(node, MATCH_FIELDS, "a match")
        for name in MATCH_FIELDS:
            value = node.get(name)
            if value is None:
                continue
            if value.text is None:
                reader.wrong(value, f"{name!r} must be one value")
            else:
                match[name] = value.text
    if match["service_tier"] == ANY:
        del match["service_tier"]
    return tuple(sorted(match.items()))
