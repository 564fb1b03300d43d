"""Parts of a whole into disjoint leaves: how much of what was read from a cache, and of which kind.

Providers state totals and parts of them that overlap: so many tokens are
images, so many came from a cache. Every function here takes parts out of one
pool, so that no token can be in two leaves and the leaves always sum to the
whole; parts that are more than their whole are refused.

Where a provider does not say which kind of content a part was (cached tokens,
as a rule), it is taken from text first, then in the order of MODALITIES: the
least overlap with the dearer kinds that the figures allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pricing.domain.dimensions import LeafKey
from pricing.domain.readers.reading import NEGATIVE_LEAF, UsageReadError, token_key

MODALITIES: Final = ("text", "document", "image", "video", "audio")

Counts = dict[LeafKey, int]
Pool = dict[str, int]
"""Tokens not yet given to a leaf, by modality."""


def pool_of(total: int, parts: Iterable[tuple[str, str, int]], total_field: str) -> Pool:
    """Split a total by modality; what no part names is text.

    `parts` are (modality, field it stands in, count). Errors: UsageReadError
    when they are more than the total.
    """
    pool: Pool = {}
    left = total
    for modality, field, amount in parts:
        if not amount:
            continue
        if amount > left:
            raise UsageReadError(
                field,
                NEGATIVE_LEAF,
                f"with {amount} {modality} tokens here, the parts are more than"
                f" {total_field} = {total}",
            )
        left -= amount
        pool[modality] = pool.get(modality, 0) + amount
    pool["text"] = pool.get("text", 0) + left
    return pool


def take(
    pool: Pool,
    amount: int,
    field: str,
    stated: Iterable[tuple[str, str, int]] = (),
    modalities: Iterable[str] = MODALITIES,
) -> Pool:
    """Take tokens out of the pool: what is stated by modality, then the rest in order.

    Gives what was taken, by modality. Errors: UsageReadError when the pool,
    or the whole of the stated parts, does not have as many.
    """
    taken: Pool = {}
    left = amount
    for modality, where, part in stated:
        if not part:
            continue
        if part > left or part > pool.get(modality, 0):
            raise UsageReadError(
                where,
                NEGATIVE_LEAF,
                f"{part} {modality} tokens are more than {field} = {amount} or than all"
                f" {modality} tokens leave",
            )
        pool[modality] -= part
        left -= part
        taken[modality] = taken.get(modality, 0) + part
    for modality in modalities:
        if not left:
            break
        part = min(left, pool.get(modality, 0))
        if part:
            pool[modality] -= part
            left -= part
            taken[modality] = taken.get(modality, 0) + part
    if left:
        raise UsageReadError(
            field,
            NEGATIVE_LEAF,
            f"{amount} tokens are {left} more than there are left of the whole",
        )
    return taken


def add(counts: Counts, key: LeafKey, amount: int) -> None:
    """Count tokens under a leaf's key."""
    counts[key] = counts.get(key, 0) + amount


def spread(
    counts: Counts,
    pool: Mapping[str, int],
    direction: str,
    cache_use: str = "none",
    cache_ttl: str = "default",
    kind: str = "plain",
    attribute: str = "",
) -> None:
    """Count a pool under one leaf for each modality."""
    for modality, amount in pool.items():
        if amount:
            key = token_key(direction, modality, cache_use, cache_ttl, kind, attribute)
            add(counts, key, amount)


def check_output(total: int, parts: Iterable[tuple[str, int]], total_field: str) -> int:
    """What is left of an output's text after its parts (field, count). Errors: UsageReadError."""
    left = total
    for field, amount in parts:
        if amount > left:
            raise UsageReadError(
                field,
                NEGATIVE_LEAF,
                f"with {amount} here, the parts are more than {total_field} = {total}",
            )
        left -= amount
    return left
