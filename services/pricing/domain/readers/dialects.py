"""Every dialect by its name, and which one a usage object is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from pricing.domain.readers import (
    anthropic,
    gemini,
    openai_chat,
    openai_responses,
    own,
    vllm,
)
from pricing.domain.readers.fields import as_object
from pricing.domain.readers.reading import MISSING_FIELD, NOT_READABLE, UsageReadError, UsageReading


class Dialect(NamedTuple):
    """A dialect: how its usage objects are read, and its words for tiers in ours.

    No words: it uses ours.
    """

    name: str
    read: Callable[[object], UsageReading]
    service_tiers: Mapping[str, str]


DIALECTS: Final[dict[str, Dialect]] = {
    module.NAME: Dialect(module.NAME, module.read, module.SERVICE_TIERS)
    for module in (openai_chat, openai_responses, anthropic, gemini, vllm, own)
}

_VLLM_ALONE: Final = ("created_cache_tokens", "multimodal_tokens")
_ANTHROPIC_ALONE: Final = (
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "cache_creation",
    "server_tool_use",
    "inference_geo",
    "speed",
    "iterations",
    "service_tier",
)


def named(name: str) -> Dialect:
    """A dialect. Errors: UsageReadError when there is none of this name."""
    dialect = DIALECTS.get(name)
    if dialect is None:
        raise UsageReadError(
            "dialect",
            NOT_READABLE,
            f"there is no dialect {name[:60]!r}; there are {', '.join(DIALECTS)}",
        )
    return dialect


def detected(data: object) -> Dialect:
    """The dialect of a usage object, by the fields that only it has.

    Where two dialects would both read it they read it alike. Errors:
    UsageReadError when no dialect has such an object.
    """
    usage = as_object(data, "")
    if "prompt_tokens" in usage:
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and any(name in details for name in _VLLM_ALONE):
            return DIALECTS[vllm.NAME]
        return DIALECTS[openai_chat.NAME]
    if "input_tokens" in usage:
        if any(name in usage for name in _ANTHROPIC_ALONE):
            return DIALECTS[anthropic.NAME]
        details = usage.get("output_tokens_details")
        if isinstance(details, dict) and "thinking_tokens" in details:
            return DIALECTS[anthropic.NAME]
        return DIALECTS[openai_responses.NAME]
    if "promptTokenCount" in usage or "prompt_token_count" in usage:
        return DIALECTS[gemini.NAME]
    if "quantities" in usage:
        return DIALECTS[own.NAME]
    raise UsageReadError(
        "",
        MISSING_FIELD,
        "no dialect has such a usage object: none of prompt_tokens, input_tokens,"
        " promptTokenCount and quantities is there",
    )
