"""OpenAI's Responses, Realtime, Images and Transcriptions: `usage` of the response.

Source: ResponseUsage, RealtimeResponseUsage, ImagesResponse.Usage and
Transcription.UsageTokens of OpenAI's published API description; they share
names, but for `input_tokens_details` (Realtime and Transcriptions write
`input_token_details`). All details are inside their totals.
"""

from __future__ import annotations

from typing import Final

from pricing.domain.readers import fields, lattice, openai_chat
from pricing.domain.readers.reading import (
    NEGATIVE_LEAF,
    NOT_READABLE,
    UsageReadError,
    UsageReading,
    reading_of,
    token_key,
)

NAME: Final = "openai_responses"
SERVICE_TIERS: Final = openai_chat.SERVICE_TIERS

_FIELDS: Final = frozenset(
    {
        "type",
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "input_tokens_details",
        "output_tokens_details",
        "input_token_details",
        "output_token_details",
    }
)
_INPUT: Final = frozenset(
    {
        "cached_tokens",
        "cached_tokens_details",
        "cache_write_tokens",
        "cache_write_tokens_details",
        "text_tokens",
        "image_tokens",
        "audio_tokens",
    }
)
_OUTPUT: Final = frozenset({"reasoning_tokens", "text_tokens", "image_tokens", "audio_tokens"})
_BY_MODALITY: Final = frozenset({"text_tokens", "image_tokens", "audio_tokens"})
_WRITES: Final = {"ttl_30m_tokens": "30m", "ttl_12h_tokens": "12h"}
_MODALITIES: Final = (
    ("image", "image_tokens"),
    ("audio", "audio_tokens"),
    ("text", "text_tokens"),
)

_IN: Final = token_key("in")
_IN_READ: Final = token_key("in", cache_use="read")
_OUT: Final = token_key("out")
_OUT_REASONING: Final = token_key("out", kind="reasoning")


def read(data: object) -> UsageReading:
    """Read a `usage` object. Errors: UsageReadError that names the field."""
    usage = fields.as_object(data, "")
    fields.known(usage, _FIELDS, "", NAME)
    kind = fields.word(usage, "type")
    if kind not in ("", "tokens"):
        raise UsageReadError("type", NOT_READABLE, f"only usage in tokens is read, not {kind!r}")
    total_in = fields.needed_count(usage, "input_tokens")
    total_out = fields.needed_count(usage, "output_tokens")
    fields.check_own_total(
        usage, "total_tokens", total_in + total_out, "input_tokens + output_tokens"
    )
    counts: lattice.Counts = {}
    _read_input(counts, usage, total_in)
    _read_output(counts, usage, total_out)
    return reading_of(counts)


def _read_input(counts: lattice.Counts, usage: fields.Object, total: int) -> None:
    name = fields.one_of(usage, "input_tokens_details", "input_token_details")
    inside = name + "."
    details = fields.part(usage, name, _INPUT, "", NAME)
    cached = fields.count(details, "cached_tokens", inside)
    if len(details) == ("cached_tokens" in details) and cached <= total:
        # Most objects say no more; what follows would come to the same.
        counts[_IN_READ] = cached
        counts[_IN] = total - cached
        return
    pool = lattice.pool_of(
        total,
        [
            (word, inside + field, fields.count(details, field, inside))
            for word, field in _MODALITIES
        ],
        "input_tokens",
    )
    below = inside + "cached_tokens_details."
    cached_details = fields.part(details, "cached_tokens_details", _BY_MODALITY, inside, NAME)
    stated = [
        (word, below + field, fields.count(cached_details, field, below))
        for word, field in _MODALITIES
    ]
    lattice.spread(
        counts, lattice.take(pool, cached, inside + "cached_tokens", stated), "in", "read"
    )
    _read_writes(counts, details, pool, inside)
    lattice.spread(counts, pool, "in")


def _read_writes(
    counts: lattice.Counts, details: fields.Object, pool: lattice.Pool, inside: str
) -> None:
    """Cache writes; what is not split by the time it is kept has the default time."""
    written = fields.count(details, "cache_write_tokens", inside)
    below = inside + "cache_write_tokens_details."
    split = fields.part(details, "cache_write_tokens_details", _WRITES.keys(), inside, NAME)
    left = written
    for field, kept in _WRITES.items():
        amount = fields.count(split, field, below)
        if amount > left:
            raise UsageReadError(
                below + field,
                NEGATIVE_LEAF,
                f"with {amount} here, the parts are more than cache_write_tokens = {written}",
            )
        left -= amount
        taken = lattice.take(pool, amount, below + field)
        lattice.spread(counts, taken, "in", "write", "custom", attribute=kept)
    taken = lattice.take(pool, left, inside + "cache_write_tokens")
    lattice.spread(counts, taken, "in", "write")


def _read_output(counts: lattice.Counts, usage: fields.Object, total: int) -> None:
    name = fields.one_of(usage, "output_tokens_details", "output_token_details")
    inside = name + "."
    details = fields.part(usage, name, _OUTPUT, "", NAME)
    reasoning = fields.count(details, "reasoning_tokens", inside)
    if len(details) == ("reasoning_tokens" in details) and reasoning <= total:
        counts[_OUT_REASONING] = reasoning
        counts[_OUT] = total - reasoning
        return
    pool = lattice.pool_of(
        total,
        [
            (word, inside + field, fields.count(details, field, inside))
            for word, field in _MODALITIES
        ],
        "output_tokens",
    )
    # Reasoning is text: it cannot have been spoken or drawn.
    lattice.take(pool, reasoning, inside + "reasoning_tokens", modalities=("text",))
    counts[_OUT_REASONING] = reasoning
    lattice.spread(counts, pool, "out")
