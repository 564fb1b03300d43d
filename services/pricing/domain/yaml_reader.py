"""Reads values out of YAML nodes, and collects every problem instead of stopping at the first."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from fractions import Fraction
from typing import Final

from kernel.money import MoneyError, parse_ratio
from pricing.domain import line_rules
from pricing.domain.card import Match, Multiplier
from pricing.domain.dimensions import MATCH_FIELDS
from pricing.domain.document import Node, Problem

_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_RATIO: Final = re.compile(r"([0-9]{1,12})/([0-9]{1,12})")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Reader:
    """Values by name, with a problem for each that cannot be read."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def wrong(self, node: Node, message: str) -> None:
        """Note a problem at a node."""
        self.problems.append(node.problem(message))

    def known(self, node: Node, names: tuple[str, ...], what: str) -> None:
        """Note every field that is none of these."""
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

    def integer(self, node: Node, name: str, default: int | None = None) -> int:
        """A whole number under a name."""
        value, text = self.text(node, name, None if default is None else str(default))
        digits = text.replace("_", "")
        if not _INTEGER.fullmatch(digits):
            if node.get(name) is not None:
                self.wrong(value, f"{name!r} is a whole number, not {text[:40]!r}")
            return default or 0
        return int(digits)

    def flag(self, node: Node, name: str) -> bool:
        """`true` or `false` under a name; false when it is not there."""
        value, text = self.text(node, name, "false")
        if text not in ("true", "false"):
            self.wrong(value, f"{name!r} is true or false, not {text[:40]!r}")
        return text == "true"

    def money_pico(self, node: Node, name: str, per: int = 1, default: str | None = None) -> int:
        """An exact amount of money under a name, divided by `per`."""
        value, text = self.text(node, name, default)
        try:
            return parse_ratio(text, per)
        except MoneyError as error:
            if node.get(name) is not None:
                self.wrong(value, f"{name!r}: {error}")
            return 0

    def ratio(self, node: Node, name: str, default: str | None = None) -> Fraction:
        """An exact decimal or a ratio such as 3/4 under a name."""
        value, text = self.text(node, name, default)
        found = _RATIO.fullmatch(text)
        if found and int(found.group(2)):
            return Fraction(int(found.group(1)), int(found.group(2)))
        if _DECIMAL.fullmatch(text):
            return Fraction(text)
        if node.get(name) is not None:
            self.wrong(value, f"{name!r} is a decimal such as 0.75 or a ratio such as 3/4")
        return Fraction(1)

    def instant_us(self, node: Node, name: str) -> int | None:
        """An instant under a name, in microseconds since the epoch; None when it is not there."""
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

    def words(self, node: Node, name: str, what: str) -> list[str]:
        """A list of texts under a name; empty when it is not there."""
        value = node.get(name)
        if value is None:
            return []
        if value.items is None or any(not item.text for item in value.items):
            self.wrong(value, f"{name!r} is a list of {what}")
            return []
        return [item.text for item in value.items if item.text]

    def match(self, node: Node) -> dict[str, str]:
        """The `match` of a line or of a multiplier, as it is written."""
        match: dict[str, str] = {}
        found = node.get("match")
        if found is not None and found.fields is None:
            self.wrong(found, "'match' is a mapping such as {model: NAME, direction: in}")
        elif found is not None:
            self.known(found, MATCH_FIELDS, "a match")
            for name in MATCH_FIELDS:
                value = found.get(name)
                if value is None:
                    continue
                if value.text is None:
                    self.wrong(value, f"{name!r} must be one value")
                else:
                    match[name] = value.text
        return match

    def multipliers(self, node: Node) -> tuple[Multiplier, ...]:
        """The list `multipliers` of a card or of a line."""
        found = node.get("multipliers")
        if found is None:
            return ()
        if found.items is None or len(found.items) > line_rules.MAX_MULTIPLIERS:
            self.wrong(found, f"'multipliers' is a list of at most {line_rules.MAX_MULTIPLIERS}")
            return ()
        made: list[Multiplier] = []
        for item in found.items:
            if item.fields is None:
                self.wrong(item, "a multiplier is a mapping with id, match and factor")
                continue
            self.known(item, ("id", "match", "factor"), "a multiplier")
            match: Match = tuple(sorted(self.match(item).items()))
            made.append(Multiplier(self.text(item, "id")[1], match, self.ratio(item, "factor")))
        return tuple(made)
