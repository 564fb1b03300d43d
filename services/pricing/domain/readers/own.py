"""Our own events: `quantities` of a UsageEvent in protobuf's JSON form.

Source: protos/tollbook/usage/v1/usage.proto. Enums may be written in full
(UNIT_TOKEN), as numbers, or by the words that cards use (token); 64-bit
integers as numbers or, as protobuf writes them, as texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pricing.domain import dimensions
from pricing.domain.events import EventLeaf
from pricing.domain.readers import fields
from pricing.domain.readers.reading import (
    INCONSISTENT,
    MISSING_FIELD,
    NEGATIVE_LEAF,
    NOT_READABLE,
    UsageReadError,
    UsageReading,
)

NAME: Final = "tollbook"
MAX_LEAVES: Final = 64
SERVICE_TIERS: Final[Mapping[str, str]] = {}
"""Our events state the tier that served, in our words; any word is one."""

_SPELLINGS: Final = {
    "cacheUse": "cache_use",
    "cacheTtl": "cache_ttl",
    "tokenKind": "token_kind",
    "undeliveredAmount": "undelivered_amount",
}
_FIELDS: Final = frozenset(
    {
        "unit",
        "direction",
        "modality",
        "cache_use",
        "cache_ttl",
        "token_kind",
        "attribute",
        "amount",
        "undelivered_amount",
    }
)
_INTEGER: Final = re.compile(r"-?[0-9]{1,30}")


def _numbers(words: Mapping[int, str], prefix: str) -> dict[Any, int]:
    """Every way to write an enum's value."""
    found: dict[Any, int] = {}
    for number, word in words.items():
        found.update({number: number, word: number, prefix + word.upper(): number})
    return found


_UNIT: Final = _numbers(dimensions.UNITS, "UNIT_")
_ENUMS: Final = (
    ("direction", _numbers(dimensions.DIRECTIONS, "DIRECTION_") | {"none": 0}),
    ("modality", _numbers(dimensions.MODALITIES, "MODALITY_")),
    ("cache_use", _numbers(dimensions.CACHE_USES, "CACHE_USE_")),
    ("cache_ttl", _numbers(dimensions.CACHE_TTLS, "CACHE_TTL_") | {"default": 0}),
    ("token_kind", _numbers(dimensions.TOKEN_KINDS, "TOKEN_KIND_")),
)


def read(data: object) -> UsageReading:
    """Read an object with `quantities`. Errors: UsageReadError that names the field."""
    usage = fields.as_object(data, "")
    fields.known(usage, frozenset({"quantities"}), "", NAME)
    items = usage.get("quantities")
    if not isinstance(items, list) or len(items) > MAX_LEAVES:
        raise UsageReadError(
            "quantities", NOT_READABLE, f"a list of at most {MAX_LEAVES} leaves is needed"
        )
    leaves: dict[dimensions.LeafKey, EventLeaf] = {}
    for index, item in enumerate(items):
        path = f"quantities[{index}]."
        leaf = _leaf(_snake(fields.as_object(item, path[:-1]), path), path)
        if leaf.key in leaves:
            raise UsageReadError(path[:-1], INCONSISTENT, "two leaves with the same dimensions")
        leaves[leaf.key] = leaf
    return UsageReading(tuple(leaves[key] for key in sorted(leaves) if leaves[key].amount))


def _snake(item: fields.Object, path: str) -> fields.Object:
    found = {_SPELLINGS.get(name, name): value for name, value in item.items()}
    if len(found) != len(item):
        raise UsageReadError(path[:-1], INCONSISTENT, "a field stands there in both spellings")
    return found


def _leaf(item: fields.Object, path: str) -> EventLeaf:
    fields.known(item, _FIELDS, path, NAME)
    unit = _enum(item, "unit", _UNIT, path)
    if not unit:
        raise UsageReadError(path + "unit", MISSING_FIELD, "this field is missing")
    numbers = [_enum(item, name, values, path) for name, values in _ENUMS]
    amount = _int64(item, "amount", path)
    undelivered = _int64(item, "undelivered_amount", path)
    if undelivered > amount:
        raise UsageReadError(
            path + "undelivered_amount",
            NEGATIVE_LEAF,
            f"{undelivered} is more than amount = {amount}",
        )
    key = dimensions.leaf_key(
        unit,
        numbers[0],
        numbers[1],
        numbers[2],
        numbers[3],
        numbers[4],
        fields.word(item, "attribute", path),
    )
    return EventLeaf(key, amount, undelivered)


def _enum(item: fields.Object, name: str, values: Mapping[Any, int], path: str) -> int:
    said = item.get(name)
    if said is None:
        return 0
    number = values.get(said) if isinstance(said, str) or type(said) is int else None
    if number is None:
        raise UsageReadError(path + name, NOT_READABLE, f"there is no {repr(said)[:60]}")
    return number


def _int64(item: fields.Object, name: str, path: str) -> int:
    said = item.get(name)
    if isinstance(said, str):
        if not _INTEGER.fullmatch(said):
            raise UsageReadError(
                path + name, NOT_READABLE, f"a whole number is needed, not {said[:60]!r}"
            )
        item = {name: int(said)}
    return fields.count(item, name, path)
