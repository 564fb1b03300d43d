"""What a reader gives: disjoint leaves, or an error that names the field.

Owns the one shape all dialects are read into, and the refusal. A leaf is
never guessed: what does not add up is refused by name, so that its record can
be put aside with the reason and read again when the reader knows better.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from pricing.domain.dimensions import LeafKey
from pricing.domain.events import EventLeaf

UNKNOWN_FIELD: Final = "UNKNOWN_FIELD"
"""A field that the dialect does not have: it might be something to charge."""
MISSING_FIELD: Final = "MISSING_FIELD"
"""A field that the dialect always has."""
NOT_READABLE: Final = "NOT_READABLE"
"""A field of another type, or a word that the dialect does not have."""
OUT_OF_RANGE: Final = "OUT_OF_RANGE"
"""A count below 0 or beyond what a request can use."""
NEGATIVE_LEAF: Final = "NEGATIVE_LEAF"
"""Parts that are more than their whole: some leaf would be below 0."""
INCONSISTENT: Final = "INCONSISTENT"
"""Two fields that say different things of the same tokens."""


class UsageReadError(ValueError):
    """A usage object that cannot be read: which field, the reason's name, and what is wrong."""

    def __init__(self, field: str, reason: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.reason = reason
        self.message = message


class UsageReading(NamedTuple):
    """A usage object as rating reads it.

    `leaves` are disjoint, greater than 0, each key once, in order of key.
    `service_tier` and `region` are empty when the object does not say.
    """

    leaves: tuple[EventLeaf, ...]
    service_tier: str = ""
    region: str = ""


@lru_cache(maxsize=4096)
def token_key(
    direction: str,
    modality: str = "text",
    cache_use: str = "none",
    cache_ttl: str = "default",
    kind: str = "plain",
    attribute: str = "",
) -> LeafKey:
    """Key of a leaf of tokens; as a rule the same object for the same dimensions."""
    return LeafKey("token", direction, modality, cache_use, cache_ttl, kind, attribute)


def other_key(unit: str, attribute: str = "") -> LeafKey:
    """Key of a leaf of a unit without direction, such as calls of a tool."""
    return LeafKey(unit, "none", "text", "none", "default", "plain", attribute)


def reading_of(
    counts: Mapping[LeafKey, int], service_tier: str = "", region: str = ""
) -> UsageReading:
    """A reading of counted leaves; those that are 0 are left out."""
    leaves = [EventLeaf(key, amount, 0) for key, amount in counts.items() if amount]
    leaves.sort()
    return UsageReading(tuple(leaves), service_tier, region)
