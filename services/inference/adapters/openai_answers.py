"""Our answers and errors, told in OpenAI's words.

Format: OpenAI's HTTP API: its usage object, its error object, the answer of `/v1/embeddings`.
"""

from __future__ import annotations

from array import array
from base64 import b64encode
from collections.abc import Mapping
from typing import Final

from inference.adapters.openai_shapes import Json
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

_STATUSES: Final[dict[type[errors.TollbookError], int]] = {
    errors.InvalidArgument: 400,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.FailedPrecondition: 400,
    errors.OutOfRange: 400,
    errors.QuotaExceeded: 429,
    # Of a model that can do less than is asked, OpenAI says so.
    errors.Unimplemented: 400,
    errors.Unavailable: 503,
    errors.DeadlinePassed: 504,
}
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "insufficient_quota",
}
# Codes that programs written for OpenAI look for; else our own stable reason stands there.
_CODES: Final = {
    "NO_KEY": "invalid_api_key",
    "UNKNOWN_KEY": "invalid_api_key",
    "UNKNOWN_MODEL": "model_not_found",
    "NO_CREDIT": "insufficient_quota",
    "SPEND_LIMIT": "insufficient_quota",
}
# How our fields are called in a caller's request.
_PARAMETERS: Final = {
    "spec.request_id": "Idempotency-Key",
    "spec.chat.tools": "tools",
    "spec.chat": "messages",
    "spec.tokens": "prompt",
    "texts": "input",
    "inputs": "input",
    "request_id": "Idempotency-Key",
    "spec.sampling.json_schema": "response_format",
}


def embeddings_of(answer: inference.EmbedResponse, model: str, base64: bool) -> Json:
    """The answer of `/v1/embeddings`; in base64 a vector is its float32s, little-endian."""
    data: list[Json] = []
    for index, one in enumerate(answer.embeddings):
        vector = (
            b64encode(array("f", one.values).tobytes()).decode() if base64 else list(one.values)
        )
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = answer.usage.prompt_tokens
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def usage_of(summary: inference.UsageSummary) -> Json:
    """The usage object: the same figures as the event's, so as the bill's."""
    reasoning = sum(
        leaf.amount
        for leaf in summary.quantities
        if leaf.token_kind == usage.TOKEN_KIND_REASONING and leaf.direction == usage.DIRECTION_OUT
    )
    return {
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.output_tokens,
        "total_tokens": summary.prompt_tokens + summary.output_tokens,
        "prompt_tokens_details": {"cached_tokens": summary.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def error_of(
    error: errors.TollbookError, summary: inference.UsageSummary | None
) -> tuple[int, Json, Mapping[str, str]]:
    """(HTTP status, body, headers) of an error.

    `x-should-retry` is what OpenAI's own clients go by: a settled request is never to be
    sent again by itself, for a new run is a new charge.
    """
    status = next((_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES), 500)
    if error.reason == "BODY_TOO_LARGE":
        status = 413
    violations = error.violations if isinstance(error, errors.InvalidArgument) else ()
    field = violations[0].field if violations else ""
    known = next((_PARAMETERS[name] for name in _PARAMETERS if field.startswith(name)), None)
    body: Json = {
        "message": error.message,
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": (known or field.removeprefix("spec.sampling.").removeprefix("spec.")) or None,
        "code": _CODES.get(error.reason, error.reason.lower() or None),
        "reason": error.reason or None,
    }
    if summary is not None:
        body |= {"request_id": summary.request_id, "usage": usage_of(summary)}
    headers = {"x-should-retry": "false"}
    if isinstance(error, errors.Unavailable) and summary is None:
        headers = {
            "x-should-retry": "true",
            "retry-after-ms": str(error.retry_after_ms),
            "retry-after": str(-(-error.retry_after_ms // 1000)),
        }
    return status, {"error": body}, headers
