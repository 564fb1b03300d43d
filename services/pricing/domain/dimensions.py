"""What can select a price: a leaf's own dimensions and the request's context.

Owns the words (as they stand in cards, receipts and documents) and their
order. One table: card reader, matcher and receipts all use it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tollbook.usage.v1 import usage_pb2 as usage


def _words(enum: object, prefix: str) -> dict[int, str]:
    items: list[tuple[str, int]] = enum.items()  # type: ignore[attr-defined]
    return {number: name.removeprefix(prefix).lower() for name, number in items}


UNITS: Final = _words(usage.Unit, "UNIT_")
DIRECTIONS: Final = _words(usage.Direction, "DIRECTION_")
MODALITIES: Final = _words(usage.Modality, "MODALITY_")
CACHE_USES: Final = _words(usage.CacheUse, "CACHE_USE_")
CACHE_TTLS: Final = _words(usage.CacheTtl, "CACHE_TTL_")
TOKEN_KINDS: Final = _words(usage.TokenKind, "TOKEN_KIND_")
OUTCOMES: Final = _words(usage.Outcome, "OUTCOME_")

UNIT_BY_WORD: Final = {word: number for number, word in UNITS.items() if number}
OUTCOME_BY_WORD: Final = {word: number for number, word in OUTCOMES.items() if number}

EMBEDDING: Final = TOKEN_KINDS[usage.TOKEN_KIND_EMBEDDING]
"""A kind of input token that the engine's own counter is of."""
STANDARD_TIER: Final = "standard"
ANY: Final = "any"
"""In a card's YAML, for service_tier: this line is for every tier."""


class LeafKey(NamedTuple):
    """A leaf's dimensions, with the unspecified read as the contract says."""

    unit: str
    direction: str
    modality: str
    cache_use: str
    cache_ttl: str
    token_kind: str
    attribute: str


class Context(NamedTuple):
    """What a request brings that may select a price."""

    model: str
    base_model: str
    adapter: str
    service_tier: str
    region: str


_LEAF_FIELDS: Final = ("direction", "modality", "cache_use", "cache_ttl", "token_kind", "attribute")
CONTEXT_FIELDS: Final = frozenset(Context._fields)
TIME_WINDOW: Final = "time_window"
"""In a match: a window of hours that the card names."""
MATCH_FIELDS: Final = (*Context._fields, TIME_WINDOW, *_LEAF_FIELDS)
WILD_FIELDS: Final = frozenset({"adapter", "region", "attribute"})
"""What a match may ask to be there, whatever it is (`*`)."""

ENUM_WORDS: Final[dict[str, frozenset[str]]] = {
    "direction": frozenset({"in", "out", "none"}),
    "modality": frozenset(word for number, word in MODALITIES.items() if number),
    "cache_use": frozenset(word for number, word in CACHE_USES.items() if number),
    "cache_ttl": frozenset({"default", "5m", "1h", "custom"}),
    "token_kind": frozenset(word for number, word in TOKEN_KINDS.items() if number),
}


def leaf_key(
    unit: int, direction: int, modality: int, cache_use: int, ttl: int, kind: int, attribute: str
) -> LeafKey:
    """Key of a leaf's numbers as they stand in the event. Unknown numbers read as `#N`."""
    return LeafKey(
        UNITS.get(unit, f"#{unit}"),
        DIRECTIONS.get(direction, f"#{direction}") if direction else "none",
        MODALITIES.get(modality, f"#{modality}") if modality else "text",
        CACHE_USES.get(cache_use, f"#{cache_use}") if cache_use else "none",
        CACHE_TTLS.get(ttl, f"#{ttl}") if ttl else "default",
        TOKEN_KINDS.get(kind, f"#{kind}") if kind else "plain",
        attribute,
    )
