"""A request and a leaf that a line is for: what a line is looked at through, beside other cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pricing.domain.card import WILD, Card, Line
from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.dimensions import EMBEDDING, STANDARD_TIER, Context, LeafKey
from pricing.domain.price_list import leaf_words, rated_one_each
from pricing.domain.selection import compatible

Sample = tuple[Context, LeafKey]

_OUT_ONLY: Final = frozenset(
    {"reasoning", "citation", "prediction_accepted", "prediction_rejected"}
)
"""Kinds of token that are generated."""
_WHO: Final = frozenset({"model", "base_model", "adapter"})
"""What no card says of another's: which adapter is of which model."""


def sample_of(line: Line) -> Sample:
    """A request and a leaf that a line is for."""
    return _sample(line.unit, dict(line.match))


def sample_of_both(line: Line, other: Line) -> Sample | None:
    """A request and a leaf that two lines are for; None where no usage can be for both.

    Lines that name different models, base models or adapters are taken to be apart, but where one
    names all that the other does: what is an adapter of what cannot be known from cards.
    """
    if line.unit != other.unit or not compatible(line.match, other.match, frozenset()):
        return None
    one, two = dict(line.match), dict(other.match)
    if not (who := _WHO & one.keys()) <= (whose := _WHO & two.keys()) and not whose <= who:
        return None
    match = one | {name: word for name, word in two.items() if word != WILD or name not in one}
    sample = _sample(line.unit, match)
    return sample if _can_be(sample[1]) else None


def _sample(unit: str, named: Mapping[str, str]) -> Sample:
    # A word that stands for any other is one of them.
    match = {name: "any" if word == WILD else word for name, word in named.items()}
    model = match.get("model", match.get("base_model", "any-model"))
    context = Context(
        model=model,
        base_model=match.get("base_model", model),
        adapter=match.get("adapter", ""),
        service_tier=match.get("service_tier", STANDARD_TIER),
        region=match.get("region", ""),
    )
    kind, ttl = match.get("token_kind", "plain"), match.get("cache_ttl", "default")
    direction = "none"
    if unit == "token":
        direction = "out" if kind in _OUT_ONLY else "in"
    key = LeafKey(
        unit=unit,
        direction=match.get("direction", direction),
        modality=match.get("modality", "text"),
        cache_use=match.get("cache_use", "none" if ttl == "default" else "write"),
        cache_ttl=ttl,
        token_kind=kind,
        attribute=match.get("attribute", ""),
    )
    return context, key


def _can_be(key: LeafKey) -> bool:
    """Whether there are such leaves: of tokens not each combination of words means something."""
    if key.cache_ttl != "default" and key.cache_use != "write":
        return False
    if key.direction == "out":
        return key.cache_use == "none" and key.token_kind != EMBEDDING
    return key.token_kind not in _OUT_ONLY


def priced_sample(
    catalogue: Catalogue, draft: Card, sample: Sample, at_us: int, account_id: str | None = None
) -> Priced | None:
    """What prices a leaf of an account that the draft is for, by default the first."""
    context, key = sample
    if account_id is None:
        account_id = draft.accounts[0] if draft.accounts else ""
    rated = rated_one_each(catalogue, account_id, draft.currency, context, at_us, (key,))
    return rated[0].priced


def words_of(sample: Sample) -> str:
    """A sample for people: its model, leaf and tier."""
    context, key = sample
    tier = f" ({context.service_tier})" if context.service_tier != STANDARD_TIER else ""
    return f"{context.model!r} {leaf_words(key)}{tier}"
