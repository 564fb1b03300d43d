"""OpenAI's Chat Completions, Completions and Embeddings: `usage` of the response.

Source: CompletionUsage of OpenAI's published API description. Cached, written
and audio or image tokens are inside prompt_tokens; reasoning, audio and both
kinds of prediction tokens are inside completion_tokens, rejected ones too.
DeepSeek says the cached ones beside it as well: prompt_cache_hit_tokens.
"""

from __future__ import annotations

from typing import Final

from pricing.domain.readers import fields, lattice
from pricing.domain.readers.reading import UsageReading, reading_of, token_key

NAME: Final = "openai_chat"
SERVICE_TIERS: Final = {
    "default": "standard",
    "standard": "standard",
    "flex": "flex",
    "priority": "priority",
    "scale": "scale",
    "batch": "batch",
}
"""The tier stands in the response beside `usage`. `auto` is asked for, never served."""

_FIELDS: Final = frozenset(
    {
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "completion_tokens_details",
        "prompt_cache_hit_tokens",
        "prompt_cache_miss_tokens",
    }
)
_PROMPT: Final = frozenset(
    {"cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "text_tokens"}
)
_COMPLETION: Final = frozenset(
    {
        "reasoning_tokens",
        "audio_tokens",
        "text_tokens",
        "accepted_prediction_tokens",
        "rejected_prediction_tokens",
    }
)

_IN: Final = token_key("in")
_OUT: Final = token_key("out")
_IN_READ: Final = token_key("in", cache_use="read")
_OUT_REASONING: Final = token_key("out", kind="reasoning")
_OUT_AUDIO: Final = token_key("out", "audio")
_OUT_ACCEPTED: Final = token_key("out", kind="prediction_accepted")
_OUT_REJECTED: Final = token_key("out", kind="prediction_rejected")


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
    _read_prompt(counts, usage, prompt)
    _read_completion(counts, usage, completion)
    return reading_of(counts)


def _read_prompt(counts: lattice.Counts, usage: fields.Object, total: int) -> None:
    inside = "prompt_tokens_details."
    details = fields.part(usage, "prompt_tokens_details", _PROMPT, "", NAME)
    cached = fields.count(details, "cached_tokens", inside)
    cached_field = inside + "cached_tokens"
    if usage.get("prompt_cache_hit_tokens") is not None:
        cached, cached_field = _cache_hits(usage, details, total), "prompt_cache_hit_tokens"
    if len(details) == ("cached_tokens" in details) and cached <= total:
        # Most objects say no more; what follows would come to the same.
        counts[_IN_READ] = cached
        counts[_IN] = total - cached
        return
    pool = lattice.pool_of(
        total,
        [
            (modality, inside + name, fields.count(details, name, inside))
            for modality, name in (
                ("image", "image_tokens"),
                ("audio", "audio_tokens"),
                ("text", "text_tokens"),
            )
        ],
        "prompt_tokens",
    )
    read_from_cache = lattice.take(pool, cached, cached_field)
    written = fields.count(details, "cache_write_tokens", inside)
    written_to_cache = lattice.take(pool, written, inside + "cache_write_tokens")
    lattice.spread(counts, read_from_cache, "in", "read")
    lattice.spread(counts, written_to_cache, "in", "write")
    lattice.spread(counts, pool, "in")


def _cache_hits(usage: fields.Object, details: fields.Object, total: int) -> int:
    """DeepSeek's count of cached tokens, where all that it says of them agrees."""
    hits = fields.count(usage, "prompt_cache_hit_tokens")
    if details.get("cached_tokens") is not None:
        cached = fields.count(details, "cached_tokens", "prompt_tokens_details.")
        fields.check_total(
            hits, cached, "prompt_cache_hit_tokens", "prompt_tokens_details.cached_tokens"
        )
    if usage.get("prompt_cache_miss_tokens") is not None:
        misses = fields.count(usage, "prompt_cache_miss_tokens")
        fields.check_total(
            hits + misses, total, "prompt_cache_miss_tokens", "with the hits prompt_tokens"
        )
    return hits


def _read_completion(counts: lattice.Counts, usage: fields.Object, total: int) -> None:
    inside = "completion_tokens_details."
    details = fields.part(usage, "completion_tokens_details", _COMPLETION, "", NAME)
    if not details:
        counts[_OUT] = total
        return
    audio = fields.count(details, "audio_tokens", inside)
    text = fields.count(details, "text_tokens", inside)
    # Whether text_tokens counts the reasoning is not said: it only may not pass what is there.
    lattice.check_output(
        total,
        [(inside + "audio_tokens", audio), (inside + "text_tokens", text)],
        "completion_tokens",
    )
    counts[_OUT_AUDIO] = audio
    counts[_OUT_REASONING] = fields.count(details, "reasoning_tokens", inside)
    counts[_OUT_ACCEPTED] = fields.count(details, "accepted_prediction_tokens", inside)
    counts[_OUT_REJECTED] = fields.count(details, "rejected_prediction_tokens", inside)
    counts[_OUT] = lattice.check_output(
        total,
        [
            (inside + "audio_tokens", audio),
            (inside + "reasoning_tokens", counts[_OUT_REASONING]),
            (inside + "accepted_prediction_tokens", counts[_OUT_ACCEPTED]),
            (inside + "rejected_prediction_tokens", counts[_OUT_REJECTED]),
        ],
        "completion_tokens",
    )
