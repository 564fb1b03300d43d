"""One request, written as each system would write its usage: the reverse of the readers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pricing.domain.readers.reading import UsageReading


@dataclass(frozen=True)
class Request:
    """What a request used. All counts are disjoint."""

    plain_in: int = 0
    cache_read: int = 0
    cache_write: int = 0
    plain_out: int = 0
    reasoning: int = 0

    @property
    def total_in(self) -> int:
        return self.plain_in + self.cache_read + self.cache_write

    @property
    def total_out(self) -> int:
        return self.plain_out + self.reasoning


def openai_chat(request: Request) -> dict[str, Any]:
    return {
        "prompt_tokens": request.total_in,
        "completion_tokens": request.total_out,
        "total_tokens": request.total_in + request.total_out,
        "prompt_tokens_details": {
            "cached_tokens": request.cache_read,
            "cache_write_tokens": request.cache_write,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": request.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def openai_responses(request: Request) -> dict[str, Any]:
    return {
        "input_tokens": request.total_in,
        "input_tokens_details": {
            "cached_tokens": request.cache_read,
            "cache_write_tokens": request.cache_write,
        },
        "output_tokens": request.total_out,
        "output_tokens_details": {"reasoning_tokens": request.reasoning},
        "total_tokens": request.total_in + request.total_out,
    }


def anthropic(request: Request) -> dict[str, Any]:
    return {
        "input_tokens": request.plain_in,
        "cache_creation_input_tokens": request.cache_write,
        "cache_read_input_tokens": request.cache_read,
        "output_tokens": request.total_out,
        "output_tokens_details": {"thinking_tokens": request.reasoning},
        "service_tier": "standard",
    }


def gemini(request: Request) -> dict[str, Any]:
    """Gemini has no cache writes: they are bought as storage."""
    assert not request.cache_write
    return {
        "promptTokenCount": request.total_in,
        "cachedContentTokenCount": request.cache_read,
        "candidatesTokenCount": request.plain_out,
        "thoughtsTokenCount": request.reasoning,
        "totalTokenCount": request.total_in + request.total_out,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": request.total_in}],
    }


def vllm(request: Request) -> dict[str, Any]:
    return {
        "prompt_tokens": request.total_in,
        "total_tokens": request.total_in + request.total_out,
        "completion_tokens": request.total_out,
        "prompt_tokens_details": {
            "cached_tokens": request.cache_read,
            "created_cache_tokens": request.cache_write,
            "multimodal_tokens": None,
        },
        "completion_tokens_details": {"reasoning_tokens": request.reasoning},
    }


def tollbook(request: Request) -> dict[str, Any]:
    token = "UNIT_TOKEN"
    return {
        "quantities": [
            {"unit": token, "direction": "DIRECTION_IN", "amount": str(request.plain_in)},
            {
                "unit": token,
                "direction": "DIRECTION_IN",
                "cacheUse": "CACHE_USE_READ",
                "amount": str(request.cache_read),
            },
            {
                "unit": token,
                "direction": "DIRECTION_IN",
                "cacheUse": "CACHE_USE_WRITE",
                "amount": str(request.cache_write),
            },
            {"unit": token, "direction": "DIRECTION_OUT", "amount": str(request.plain_out)},
            {
                "unit": token,
                "direction": "DIRECTION_OUT",
                "tokenKind": "TOKEN_KIND_REASONING",
                "amount": str(request.reasoning),
            },
        ]
    }


WRITERS = {
    "openai_chat": openai_chat,
    "openai_responses": openai_responses,
    "anthropic": anthropic,
    "gemini": gemini,
    "vllm": vllm,
    "tollbook": tollbook,
}
WITHOUT_CACHE_WRITES = ("gemini",)


def as_own(reading: UsageReading) -> dict[str, Any]:
    """A reading written as our own quantities, with the words that cards use."""
    return {
        "quantities": [
            leaf.key._asdict() | {"amount": leaf.amount, "undelivered_amount": leaf.undelivered}
            for leaf in reading.leaves
        ]
    }


def vector(reading: UsageReading) -> dict[str, int]:
    """Short names for leaves: `in`, `in.read`, `in.audio`, `out.reasoning`, `in.write.5m`."""
    found = {}
    for leaf in reading.leaves:
        key = leaf.key
        parts = [key.unit if key.direction == "none" else key.direction]
        parts += [
            part
            for part in (
                key.modality,
                key.cache_use,
                key.cache_ttl,
                key.token_kind,
                key.attribute,
            )
            if part not in ("text", "none", "default", "plain", "")
        ]
        found[".".join(parts)] = leaf.amount
    return found
