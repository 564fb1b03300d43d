"""What a model's leaves cost, asked of the same rules that charge them, a unit at a time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Final, NamedTuple

from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.dimensions import STANDARD_TIER, UNIT_BY_WORD, Context, LeafKey
from pricing.domain.events import Event, EventLeaf
from pricing.domain.rating import RatedLeaf, rate_event
from tollbook.usage.v1 import usage_pb2 as usage

_SILENT: Final = ("none", "text", "default", "plain", "")


class Price(NamedTuple):
    """A kind of leaf, in words, and what prices it."""

    leaf: str
    priced: Priced


def leaf_words(key: LeafKey) -> str:
    """A leaf's dimensions, those that say something: `token in read`."""
    return " ".join(word for word in key if word not in _SILENT)


def usual_leaves() -> Iterator[LeafKey]:
    """The kinds of leaf that models have: tokens in and out by modality, and the other units."""
    modalities = ("text", "audio", "image", "video", "document")
    for unit, modality in product(("token",), modalities):
        yield LeafKey(unit, "in", modality, "none", "default", "plain", "")
        yield LeafKey(unit, "in", modality, "read", "default", "plain", "")
        for ttl in ("default", "5m", "1h"):
            yield LeafKey(unit, "in", modality, "write", ttl, "plain", "")
        for kind in ("plain", "reasoning"):
            yield LeafKey(unit, "out", modality, "none", "default", kind, "")
    for unit in UNIT_BY_WORD:
        if unit != "token":
            yield LeafKey(unit, "none", "text", "none", "default", "plain", "")


def rated_one_each(
    catalogue: Catalogue,
    account_id: str,
    currency: str,
    context: Context,
    event_time_us: int,
    keys: Iterable[LeafKey],
) -> tuple[RatedLeaf, ...]:
    """One of each leaf, rated by the rules and the code that charge an event of that instant."""
    event = Event(
        position=0,
        event_id="",
        account_id=account_id,
        context=context,
        outcome=usage.OUTCOME_COMPLETE,
        event_time_us=event_time_us,
        leaves=tuple(EventLeaf(key, 1, 0) for key in keys),
        engine_id="",
    )
    return rate_event(event, currency, catalogue)


def prices_of(
    catalogue: Catalogue,
    account_id: str,
    currency: str,
    model: str,
    service_tier: str,
    event_time_us: int,
) -> list[Price]:
    """The price of every usual kind of leaf of a model that has one: what is charged is shown."""
    context = Context(model, model, "", service_tier or STANDARD_TIER, "")
    rated = rated_one_each(catalogue, account_id, currency, context, event_time_us, usual_leaves())
    return [
        Price(leaf_words(part.leaf.key), part.priced) for part in rated if part.priced is not None
    ]
