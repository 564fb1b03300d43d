"""A request and a leaf that a line is for: what a line is looked at through, beside other cards."""

from __future__ import annotations

from pricing.domain.card import Card, Line
from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.dimensions import STANDARD_TIER, Context, LeafKey
from pricing.domain.price_list import leaf_words, rated_one_each

Sample = tuple[Context, LeafKey]


def sample_of(line: Line) -> Sample:
    """A request and a leaf that a line is for."""
    # A word that stands for any other is one of them.
    match = {name: "any" if word == "*" else word for name, word in line.match}
    model = match.get("model", match.get("base_model", "any-model"))
    context = Context(
        model=model,
        base_model=match.get("base_model", model),
        adapter=match.get("adapter", ""),
        service_tier=match.get("service_tier", STANDARD_TIER),
        region=match.get("region", ""),
    )
    is_token = line.unit == "token"
    key = LeafKey(
        unit=line.unit,
        direction=match.get("direction", "in" if is_token else "none"),
        modality=match.get("modality", "text"),
        cache_use=match.get("cache_use", "none"),
        cache_ttl=match.get("cache_ttl", "default"),
        token_kind=match.get("token_kind", "plain"),
        attribute=match.get("attribute", ""),
    )
    return context, key


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
