"""vLLM's OpenAI-compatible server: `usage` of the response.

Source: UsageInfo, PromptTokenUsageInfo and CompletionTokenUsageInfo of vLLM
0.32. Everything in the details is inside its total; multimodal_tokens counts
the placeholders that the prompt holds.
"""

from __future__ import annotations

from typing import Final

from pricing.domain.readers import fields, lattice
from pricing.domain.readers.reading import UsageReading, reading_of, token_key

NAME: Final = "vllm"
SERVICE_TIERS: Final = {"standard": "standard", "default": "standard"}

_FIELDS: Final = frozenset(
    {
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "completion_tokens_details",
    }
)
_PROMPT: Final = frozenset({"cached_tokens", "created_cache_tokens", "multimodal_tokens"})
_COMPLETION: Final = frozenset({"reasoning_tokens"})
_MODALITIES: Final = ("image", "video", "audio")

_OUT: Final = token_key("out")
_OUT_REASONING: Final = token_key("out", kind="reasoning")


def read(data: object) -> UsageReading:
    """Read a `usage` object. Errors: UsageReadError that names the field."""
    usage = fields.as_object(data, "")
    fields.known(usage, _FIELDS, "", NAME)
    prompt = fields.needed_count(usage, "prompt_tokens")
    completion = fields.count(usage, "completion_tokens")
    fields.check_own_total(
        usage, "total_tokens", prompt + completion, "prompt_tokens + completion_tokens"
    )
    counts: lattice.Counts = {}
    inside = "prompt_tokens_details."
    details = fields.part(usage, "prompt_tokens_details", _PROMPT, "", NAME)
    below = inside + "multimodal_tokens."
    media = fields.part(details, "multimodal_tokens", frozenset(_MODALITIES), inside, NAME)
    parts = [(word, below + word, fields.count(media, word, below)) for word in _MODALITIES]
    pool = lattice.pool_of(prompt, parts, "prompt_tokens")
    for field, cache_use in (("cached_tokens", "read"), ("created_cache_tokens", "write")):
        amount = fields.count(details, field, inside)
        lattice.spread(counts, lattice.take(pool, amount, inside + field), "in", cache_use)
    lattice.spread(counts, pool, "in")
    reasoning = fields.count(
        fields.part(usage, "completion_tokens_details", _COMPLETION, "", NAME),
        "reasoning_tokens",
        "completion_tokens_details.",
    )
    counts[_OUT] = lattice.check_output(
        completion, [("completion_tokens_details.reasoning_tokens", reasoning)], "completion_tokens"
    )
    counts[_OUT_REASONING] = reasoning
    return reading_of(counts)
