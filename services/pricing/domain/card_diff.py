"""Two versions of a card, compared line by line. Pure.

Compares the canonical documents, so every field there is, or ever will be, is
compared; and says of a price how many times the old one it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Final, NamedTuple

from kernel.clock import rfc3339
from kernel.money import format_pico
from pricing.domain.card import Card

_LINES: Final = "lines"
_ID: Final = "id"


class Change(NamedTuple):
    """A field that changed, or a whole line that came (`before` empty) or went."""

    line_id: str
    field: str
    before: str
    after: str
    factor: str = ""


def diff(base: Card | None, card: Card) -> list[Change]:
    """What changed from a base to a card: the card's fields first, then its lines."""
    before = _document(base) if base is not None else {}
    after = _document(card)
    changes = list(_fields("", _without_lines(before), _without_lines(after)))
    old_lines = {line[_ID]: line for line in before.get(_LINES, ())}
    new_lines = {line[_ID]: line for line in after[_LINES]}
    for line_id, line in new_lines.items():
        if line_id in old_lines:
            changes += _fields(line_id, old_lines[line_id], line)
        else:
            changes.append(Change(line_id, "", "", _summary(line)))
    changes += [
        Change(line_id, "", _summary(line), "")
        for line_id, line in old_lines.items()
        if line_id not in new_lines
    ]
    return changes


def factor_of(before_pico: int, after_pico: int) -> str:
    """How many times the old price the new one is, to four places: `2`, `0.5`; `-` of nothing."""
    if before_pico == 0:
        return "-"
    ratio = Fraction(after_pico, before_pico)
    scaled = round(ratio * 10_000)
    if scaled == 0 and ratio:
        return "<0.0001"
    whole, rest = divmod(scaled, 10_000)
    return f"{whole}.{rest:04d}".rstrip("0").rstrip(".")


def _document(card: Card) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(card.document())
    return data


def _without_lines(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in (_LINES, "format")}


def _fields(line_id: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        factor = ""
        if name == "price_pico" and old is not None and new is not None:
            factor = factor_of(int(old), int(new))
        yield Change(line_id, _name(name), _words(name, old), _words(name, new), factor)


def _name(name: str) -> str:
    return name.removesuffix("_pico").removesuffix("_us")


def _words(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_us"):
        return rfc3339(int(value))
    if name.endswith("_pico"):
        return format_pico(int(value))
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _summary(line: Mapping[str, Any]) -> str:
    parts = (f"{_name(name)} {_words(name, line[name])}" for name in sorted(line) if name != _ID)
    return ", ".join(parts)
