"""Rate cards as people write them: YAML in, a card out, or every problem with its line and column.

Owns the YAML's own words (`effective_from`, `per`, `service_tier: any`). The
rules that every card keeps are card_rules.py's; this module finds the place
in the text for each that is broken.
"""

from __future__ import annotations

import re
from typing import Final

from pricing.domain import card_rules
from pricing.domain.card import DEFAULT_FALLBACK, SELL, UTC_ZONE, Card, Commitment, TimeWindow
from pricing.domain.document import DocumentError, Node, parse_document
from pricing.domain.line_rules import Path
from pricing.domain.line_yaml import read_line
from pricing.domain.outcomes import DEFAULT_OUTCOMES
from pricing.domain.yaml_reader import Reader

_CARD_FIELDS: Final = (
    "card",
    "purpose",
    "currency",
    "effective_from",
    "effective_to",
    "priority",
    "accounts",
    "timezone",
    "time_windows",
    "multipliers",
    "fallback",
    "commitment",
    "outcomes",
    "lines",
)
_WINDOW_FIELDS: Final = ("days", "from", "to")
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK: Final = re.compile(r"([0-9]{2}):([0-5][0-9])(?::([0-5][0-9]))?")
_SUSPENSE: Final = "suspense"
"""In `fallback`, the end there is anyhow; it may be written out."""


def parse_card(text: str) -> Card:
    """Read a card's YAML. Errors: DocumentError with the place of every problem."""
    root = parse_document(text)
    reader = Reader()
    if root.fields is None:
        raise DocumentError([root.problem("a card is a mapping that begins with 'card: NAME'")])
    reader.known(root, _CARD_FIELDS, "a card")
    effective_from_us = reader.instant_us(root, "effective_from")
    if root.get("effective_from") is None:
        reader.wrong(root, "'effective_from' is missing: the instant the prices begin to apply")
    items = _line_items(reader, root)
    lines = [(place, line) for place, item in items if (line := read_line(reader, item))]
    card = Card(
        reader.text(root, "card")[1],
        reader.text(root, "currency")[1],
        effective_from_us or 0,
        reader.instant_us(root, "effective_to"),
        reader.integer(root, "priority", 0),
        _read_accounts(reader, root),
        _read_outcomes(reader, root),
        tuple(line for _, line in lines),
        reader.text(root, "purpose", SELL)[1],
        reader.text(root, "timezone", UTC_ZONE)[1],
        _read_windows(reader, root),
        reader.multipliers(root),
        _read_fallback(reader, root),
        _read_commitment(reader, root),
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


def _node_at(root: Node, path: Path, places: list[int]) -> Node | None:
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
            index = places[part] if (depth, path[0]) == (1, "lines") else part
            below = node.items[index] if node.items and index < len(node.items) else None
        else:
            below = node.get(part)
        if below is None:
            break
        node = below
    return node


def _read_accounts(reader: Reader, root: Node) -> tuple[str, ...]:
    return tuple(sorted(set(reader.words(root, "accounts", "account ids"))))


def _read_windows(reader: Reader, root: Node) -> tuple[TimeWindow, ...]:
    node = root.get("time_windows")
    if node is None:
        return ()
    if node.fields is None:
        reader.wrong(node, "'time_windows' is a mapping such as {night: {from: 22:00, to: 06:00}}")
        return ()
    windows: list[TimeWindow] = []
    for name, (_, value) in node.fields.items():
        if value.fields is None:
            reader.wrong(value, "a time window is a mapping with days, from and to")
            continue
        reader.known(value, _WINDOW_FIELDS, "a time window")
        days = reader.words(value, "days", "days") if value.get("days") is not None else _DAYS
        for day in days:
            if day not in _DAYS:
                reader.wrong(value.get("days") or value, f"{day!r} is none of {', '.join(_DAYS)}")
        windows.append(
            TimeWindow(
                name,
                tuple(sorted(_DAYS.index(day) for day in days if day in _DAYS)),
                _clock_s(reader, value, "from"),
                _clock_s(reader, value, "to"),
            )
        )
    return tuple(sorted(windows, key=lambda window: window.name))


def _clock_s(reader: Reader, node: Node, name: str) -> int:
    value, text = reader.text(node, name)
    found = _CLOCK.fullmatch(text)
    if found is None:
        if node.get(name) is not None:
            reader.wrong(value, f"{name!r} is a time of day such as 22:00, not {text[:40]!r}")
        return 0
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def _read_fallback(reader: Reader, root: Node) -> tuple[str, ...]:
    if root.get("fallback") is None:
        return DEFAULT_FALLBACK
    words = reader.words(root, "fallback", "base_model, parent_class and suspense")
    if words and words[-1] == _SUSPENSE:
        words.pop()
    return tuple(words)


def _read_commitment(reader: Reader, root: Node) -> Commitment | None:
    node = root.get("commitment")
    if node is None:
        return None
    if node.fields is None:
        reader.wrong(node, "'commitment' is a mapping such as {minimum: 100.00, maximum: 1000.00}")
        return None
    reader.known(node, ("minimum", "maximum"), "'commitment'")
    least_pico = reader.money_pico(node, "minimum", 1, "0")
    if node.get("maximum") is None:
        return Commitment(least_pico, None)
    return Commitment(least_pico, reader.money_pico(node, "maximum"))


def _read_outcomes(reader: Reader, root: Node) -> tuple[tuple[str, str], ...]:
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


def _line_items(reader: Reader, root: Node) -> list[tuple[int, Node]]:
    node = root.get("lines")
    if node is None or not node.items:
        reader.wrong(node or root, "'lines' is a list with at least one line")
        return []
    if len(node.items) > card_rules.MAX_LINES:
        reader.wrong(node, f"a card has at most {card_rules.MAX_LINES} lines; split it")
        return []
    return list(enumerate(node.items))
