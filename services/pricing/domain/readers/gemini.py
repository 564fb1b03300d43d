"""Google's Gemini (API and Vertex): `usageMetadata` of the response, also with names_like_this.

Source: GenerateContentResponseUsageMetadata and, for Live, UsageMetadata of
Google's published types. Cached tokens are inside promptTokenCount; thoughts
and the results of tools are beside it and beside the candidates.
"""

from __future__ import annotations

import re
from typing import Final

from pricing.domain.readers import fields, lattice
from pricing.domain.readers.reading import (
    INCONSISTENT,
    NOT_READABLE,
    UsageReadError,
    UsageReading,
    reading_of,
    token_key,
)

NAME: Final = "gemini"
SERVICE_TIERS: Final = {
    "unspecified": "standard",
    "standard": "standard",
    "flex": "flex",
    "priority": "priority",
    "batch": "batch",
}

_TRAFFIC: Final = {
    "TRAFFIC_TYPE_UNSPECIFIED": "",
    "ON_DEMAND": "standard",
    "ON_DEMAND_PRIORITY": "priority",
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_OFFPEAK": "offpeak",
    "PROVISIONED_THROUGHPUT": "provisioned",
}
_MODALITIES: Final = {
    "MODALITY_UNSPECIFIED": "text",
    "TEXT": "text",
    "IMAGE": "image",
    "VIDEO": "video",
    "AUDIO": "audio",
    "DOCUMENT": "document",
}
_FIELDS: Final = frozenset(
    {
        "promptTokenCount",
        "cachedContentTokenCount",
        "candidatesTokenCount",
        "responseTokenCount",
        "toolUsePromptTokenCount",
        "thoughtsTokenCount",
        "totalTokenCount",
        "promptTokensDetails",
        "cacheTokensDetails",
        "candidatesTokensDetails",
        "responseTokensDetails",
        "toolUsePromptTokensDetails",
        "trafficType",
        "serviceTier",
    }
)
_DETAIL: Final = frozenset({"modality", "tokenCount"})
_MAX_DETAILS: Final = 64
_SNAKE: Final = re.compile(r"_([a-z])")

_OUT_REASONING: Final = token_key("out", kind="reasoning")


def read(data: object) -> UsageReading:
    """Read a `usageMetadata` object. Errors: UsageReadError that names the field."""
    usage = _camel(fields.as_object(data, ""), "")
    fields.known(usage, _FIELDS, "", NAME)
    prompt = fields.needed_count(usage, "promptTokenCount")
    answer = _spelled(usage, "candidatesTokenCount", "responseTokenCount")
    output = fields.count(usage, answer)
    tools = fields.count(usage, "toolUsePromptTokenCount")
    thoughts = fields.count(usage, "thoughtsTokenCount")
    fields.check_own_total(
        usage,
        "totalTokenCount",
        prompt + output + tools + thoughts,
        f"promptTokenCount + {answer} + toolUsePromptTokenCount + thoughtsTokenCount",
    )
    counts: lattice.Counts = {}
    pool = lattice.pool_of(prompt, _details(usage, "promptTokensDetails"), "promptTokenCount")
    cached = lattice.take(
        pool,
        fields.count(usage, "cachedContentTokenCount"),
        "cachedContentTokenCount",
        _details(usage, "cacheTokensDetails"),
    )
    lattice.spread(counts, cached, "in", "read")
    lattice.spread(counts, pool, "in")
    tool_details = _details(usage, "toolUsePromptTokensDetails")
    tool_pool = lattice.pool_of(tools, tool_details, "toolUsePromptTokenCount")
    lattice.spread(counts, tool_pool, "in", kind="tool")
    details = _spelled(usage, "candidatesTokensDetails", "responseTokensDetails")
    lattice.spread(counts, lattice.pool_of(output, _details(usage, details), answer), "out")
    counts[_OUT_REASONING] = thoughts
    return reading_of(counts, _tier(usage))


def _camel(data: fields.Object, path: str) -> fields.Object:
    """The object with itsNamesLikeThis. Errors: UsageReadError when one stands there twice."""
    if not any("_" in name for name in data):
        return data
    found = {_SNAKE.sub(lambda hit: hit[1].upper(), name): value for name, value in data.items()}
    if len(found) != len(data):
        raise UsageReadError(path, INCONSISTENT, "a field stands there in both spellings")
    return found


def _spelled(usage: fields.Object, one: str, live: str) -> str:
    """Which of two names the object uses; Live has its own. Errors: UsageReadError when both."""
    if usage.get(live) is None:
        return one
    if usage.get(one) is not None:
        raise UsageReadError(live, INCONSISTENT, f"stands beside {one}; one of them is needed")
    return live


def _details(usage: fields.Object, name: str) -> list[tuple[str, str, int]]:
    """A list of counts by modality as (modality, field, count)."""
    items = usage.get(name)
    if items is None:
        return []
    if not isinstance(items, list) or len(items) > _MAX_DETAILS:
        raise UsageReadError(name, NOT_READABLE, f"a list of at most {_MAX_DETAILS} is needed")
    found = []
    for index, item in enumerate(items):
        path = f"{name}[{index}]."
        detail = _camel(fields.as_object(item, path[:-1]), path)
        fields.known(detail, _DETAIL, path, NAME)
        said = fields.word(detail, "modality", path).upper() or "TEXT"
        modality = _MODALITIES.get(said)
        if modality is None:
            raise UsageReadError(
                path + "modality", NOT_READABLE, f"there is no modality {said[:60]!r}"
            )
        found.append((modality, path + "tokenCount", fields.count(detail, "tokenCount", path)))
    return found


def _tier(usage: fields.Object) -> str:
    traffic = fields.translated(usage, "trafficType", _TRAFFIC, NAME)
    tier = fields.translated(usage, "serviceTier", SERVICE_TIERS, NAME)
    if traffic and tier and traffic != tier:
        raise UsageReadError(
            "serviceTier", INCONSISTENT, f"{tier!r} beside trafficType for {traffic!r}"
        )
    return tier or traffic
