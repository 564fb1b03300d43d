"""Anthropic's Messages: `usage` of the response.

Source: Usage, CacheCreation, ServerToolUsage, OutputTokensDetails and
BetaIterationsUsage of Anthropic's published types. input_tokens excludes what
was read from or written to a cache; thinking is inside output_tokens. A
compaction is not in the top-level figures: its tokens are added.
"""

from __future__ import annotations

from typing import Final

from pricing.domain.readers import fields, lattice
from pricing.domain.readers.reading import (
    INCONSISTENT,
    NEGATIVE_LEAF,
    NOT_READABLE,
    UsageReadError,
    UsageReading,
    other_key,
    reading_of,
    token_key,
)

NAME: Final = "anthropic"
SERVICE_TIERS: Final = {"standard": "standard", "priority": "priority", "batch": "batch"}

_FIELDS: Final = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "cache_creation",
        "output_tokens_details",
        "server_tool_use",
        "service_tier",
        "inference_geo",
        "speed",
        "iterations",
    }
)
_ITERATION: Final = frozenset(
    {
        "type",
        "model",
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "cache_creation",
    }
)
_TTLS: Final = {"ephemeral_5m_input_tokens": "5m", "ephemeral_1h_input_tokens": "1h"}
_TOOLS: Final = {
    "web_search_requests": "web_search",
    "web_fetch_requests": "web_fetch",
    "code_execution_requests": "code_execution",
}
_THINKING: Final = frozenset({"thinking_tokens"})
_SPEEDS: Final = {"standard": "", "fast": "fast"}
_NO_REGION: Final = ("", "not_available")
_MAX_ITERATIONS: Final = 1_000

_IN: Final = token_key("in")
_IN_READ: Final = token_key("in", cache_use="read")
_IN_WRITE: Final = token_key("in", cache_use="write")
_OUT: Final = token_key("out")
_OUT_REASONING: Final = token_key("out", kind="reasoning")
_WRITES: Final = {
    field: token_key("in", cache_use="write", cache_ttl=ttl) for field, ttl in _TTLS.items()
}
_CALLS: Final = {field: other_key("tool_call", tool) for field, tool in _TOOLS.items()}


def read(data: object) -> UsageReading:
    """Read a `usage` object. Errors: UsageReadError that names the field."""
    usage = fields.as_object(data, "")
    fields.known(usage, _FIELDS, "", NAME)
    counts: lattice.Counts = {}
    _read_tokens(counts, usage, "")
    thinking = fields.count(
        fields.part(usage, "output_tokens_details", _THINKING, "", NAME),
        "thinking_tokens",
        "output_tokens_details.",
    )
    if thinking:
        if thinking > counts[_OUT]:
            raise UsageReadError(
                "output_tokens_details.thinking_tokens",
                NEGATIVE_LEAF,
                f"{thinking} is more than output_tokens = {counts[_OUT]}",
            )
        counts[_OUT] -= thinking
        counts[_OUT_REASONING] = thinking
    _read_iterations(counts, usage)
    calls = fields.part(usage, "server_tool_use", _TOOLS.keys(), "", NAME)
    for field in calls:
        lattice.add(counts, _CALLS[field], fields.count(calls, field, "server_tool_use."))
    geo = fields.word(usage, "inference_geo")
    return reading_of(counts, _tier(usage), "" if geo in _NO_REGION else geo)


def _read_tokens(counts: lattice.Counts, usage: fields.Object, path: str) -> None:
    """Tokens of a message or of one iteration. Writes without a split have the default time."""
    written = fields.count(usage, "cache_creation_input_tokens", path)
    left = written
    split = fields.part(usage, "cache_creation", _TTLS.keys(), path, NAME)
    inside = path + "cache_creation."
    amounts = {field: fields.count(split, field, inside) for field in split}
    if usage.get("cache_creation_input_tokens") is None:
        left = written = sum(amounts.values())
    for field, amount in amounts.items():
        if amount > left:
            raise UsageReadError(
                inside + field,
                NEGATIVE_LEAF,
                f"with {amount} here, the parts are more than cache_creation_input_tokens"
                f" = {written}",
            )
        left -= amount
        lattice.add(counts, _WRITES[field], amount)
    lattice.add(counts, _IN_WRITE, left)
    lattice.add(counts, _IN_READ, fields.count(usage, "cache_read_input_tokens", path))
    lattice.add(counts, _IN, fields.needed_count(usage, "input_tokens", path))
    lattice.add(counts, _OUT, fields.needed_count(usage, "output_tokens", path))


def _read_iterations(counts: lattice.Counts, usage: fields.Object) -> None:
    iterations = usage.get("iterations")
    if iterations is None:
        return
    if not isinstance(iterations, list) or len(iterations) > _MAX_ITERATIONS:
        raise UsageReadError(
            "iterations", NOT_READABLE, f"a list of at most {_MAX_ITERATIONS} is needed"
        )
    for index, item in enumerate(iterations):
        path = f"iterations[{index}]."
        iteration = fields.as_object(item, path[:-1])
        fields.known(iteration, _ITERATION, path, NAME)
        kind = fields.word(iteration, "type", path)
        if kind == "compaction":
            _read_tokens(counts, iteration, path)
        elif kind != "message":
            # An advisor's or a fallback's tokens are another model's: one line, one model.
            raise UsageReadError(
                path + "type",
                NOT_READABLE,
                f"{kind!r} is another model's usage; give it a line of its own",
            )


def _tier(usage: fields.Object) -> str:
    tier = fields.translated(usage, "service_tier", SERVICE_TIERS, NAME)
    fast = fields.translated(usage, "speed", _SPEEDS, NAME)
    if fast and tier not in ("", "standard"):
        raise UsageReadError(
            "speed", INCONSISTENT, f"'fast' beside service_tier {tier!r}: two tiers for one request"
        )
    return fast or tier
