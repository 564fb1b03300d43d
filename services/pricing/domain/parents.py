"""Plainer kinds of token: where a card says that what it does not price is priced as its parent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pricing.domain.dimensions import LeafKey

# In this order, each on top of those before: what is nearest comes first.
_PLAIN: Final = (
    ("cache_ttl", "default"),
    ("token_kind", "plain"),
    ("cache_use", "none"),
    ("modality", "text"),
)


def of(key: LeafKey) -> Iterator[LeafKey]:
    """The kinds of token above one, the nearest first; none for other units."""
    if key.unit != "token":
        return
    for name, word in _PLAIN:
        if getattr(key, name) != word:
            key = key._replace(**{name: word})
            yield key
