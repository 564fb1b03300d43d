"""A line of a card's YAML, read; see card_yaml.py."""

from __future__ import annotations

from typing import Final

from pricing.domain.card import EXACT, GREATER, Line, Match, Step, Tiers
from pricing.domain.dimensions import ANY, STANDARD_TIER
from pricing.domain.document import Node
from pricing.domain.line_rules import MAX_STEPS
from pricing.domain.yaml_reader import Reader

_LINE_FIELDS: Final = (
    "id",
    "match",
    "unit",
    "per",
    "price",
    "priority",
    "tiers",
    "package",
    "minimum_units",
    "minimum_charge",
    "included",
    "meter",
    "percentage",
    "surcharge",
    "multipliers",
    "rounding",
)
_TIER_FIELDS: Final = ("by", "mode", "boundary", "steps")
_PER: Final = ("1", "1000", "1000000")


def read_line(reader: Reader, node: Node) -> Line | None:
    """A line as far as it can be read; None when a part of it is no value at all."""
    if node.fields is None:
        reader.wrong(node, "a line is a mapping with id, match, unit, per and price")
        return None
    before = len(reader.problems)
    reader.known(node, _LINE_FIELDS, "a line")
    line_id = reader.text(node, "id")[1]
    unit = reader.text(node, "unit", "token")[1]
    surcharge = reader.flag(node, "surcharge")
    per = _per(reader, node)
    # A surcharge may be a percentage alone; whatever else is priced says so.
    price_pico = reader.money_pico(node, "price", per, "0" if surcharge else None)
    line = Line(
        line_id,
        unit,
        _match(reader, node, surcharge),
        price_pico,
        reader.integer(node, "priority", 0),
        _tiers(reader, node, per),
        _units(reader, node, "package"),
        _units(reader, node, "minimum_units"),
        reader.money_pico(node, "minimum_charge", 1, "0"),
        _units(reader, node, "included"),
        reader.text(node, "meter", "")[1],
        reader.ratio(node, "percentage", "0"),
        surcharge,
        reader.multipliers(node),
        reader.text(node, "rounding", EXACT)[1],
    )
    return None if len(reader.problems) > before else line


def _units(reader: Reader, node: Node, name: str) -> int:
    value = reader.integer(node, name, 0)
    if node.get(name) is not None and value == 0:
        reader.wrong(node.get(name) or node, f"{name!r} is 1 or more, or is left out")
    return value


def _per(reader: Reader, node: Node) -> int:
    per_node, per_text = reader.text(node, "per", "1")
    per = per_text.replace("_", "")
    if per not in _PER:
        reader.wrong(per_node, f"'per' is 1, 1000 or 1000000, not {per_text[:40]!r}")
        return 1
    if node.get("package") is not None and per != "1":
        reader.wrong(per_node, "the price of a line with 'package' is for one package: no 'per'")
        return 1
    return int(per)


def _match(reader: Reader, node: Node, surcharge: bool) -> Match:
    match = reader.match(node)
    # A surcharge goes with whatever line prices the leaf, and that one knows its tier.
    tier = match.setdefault("service_tier", ANY if surcharge else STANDARD_TIER)
    if tier == ANY:
        del match["service_tier"]
    return tuple(sorted(match.items()))


def _tiers(reader: Reader, node: Node, per: int) -> Tiers | None:
    found = node.get("tiers")
    if found is None:
        return None
    if found.fields is None:
        reader.wrong(found, "'tiers' is a mapping with by, mode, boundary and steps")
        return None
    reader.known(found, _TIER_FIELDS, "'tiers'")
    by, mode = reader.text(found, "by")[1], reader.text(found, "mode")[1]
    boundary = reader.text(found, "boundary", GREATER)[1]
    items = found.get("steps")
    if items is None or not items.items or len(items.items) > MAX_STEPS:
        reader.wrong(items or found, f"'steps' is a list of 1 to {MAX_STEPS} steps")
        return None
    steps: list[Step] = []
    for item in items.items:
        if item.fields is None:
            reader.wrong(item, "a step is a mapping with over and price")
            continue
        reader.known(item, ("over", "price"), "a step")
        over = reader.integer(item, "over")
        steps.append(Step(over, reader.money_pico(item, "price", per)))
    return Tiers(by, mode, boundary, tuple(steps))
