"""OpenAI's shapes: its requests read into ours, our answers and errors told in its words.

Owns the translation, both ways, and nothing that waits or counts. A parameter that would
change the answer and cannot be honoured is refused by name, never passed over in silence.

Format: OpenAI's HTTP API, `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`,
`/v1/models`.
"""

from __future__ import annotations

import json
from array import array
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from inference.adapters.openai_tools import (
    MAX_TOOLS,
    Bound,
    Choice,
    MadeCall,
    Parsing,
    Shape,
    Tool,
)
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

Json = dict[str, Any]

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


class _StreamOptions(Shape):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class _TextPart(Shape):
    type: Literal["text"]
    text: str


class _Message(Shape):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart] | None = None
    name: str | None = None
    refusal: None = None
    tool_calls: list[MadeCall] | None = None
    tool_call_id: str | None = None

    def told(self) -> inference.ChatMessage:
        """The message as the gate takes it. Errors: InvalidArgument."""
        if self.content is None and not self.tool_calls:
            raise errors.InvalidArgument.of_field("messages", "a message has no content")
        content = self.content or ""
        return inference.ChatMessage(
            role="system" if self.role == "developer" else self.role,
            content=content if isinstance(content, str) else "".join(part.text for part in content),
            tool_calls=[
                inference.ToolCall(
                    id=call.id, name=call.function.name, arguments=call.function.arguments
                )
                for call in self.tool_calls or ()
            ],
            tool_call_id=self.tool_call_id or "",
        )


class _Schema(Shape):
    name: str = ""
    description: str | None = None
    schema_: Json = Field(alias="schema")
    strict: bool | None = None


class _Format(Shape):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _Common(Shape):
    """What both requests have. Fields typed None are those that cannot be honoured."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    ignore_eos: bool = False
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # No difference to the answer.
    user: str | None = None
    metadata: Json | None = None

    def sampling(self, max_tokens: int | None, schema: str | None) -> inference.SamplingParams:
        """Our parameters; what the caller left out stays unset."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        given = {
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "n": self.n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "json_schema": schema,
        }
        values: Json = {name: value for name, value in given.items() if value is not None}
        try:
            return inference.SamplingParams(**values, stop=stop, ignore_eos=self.ignore_eos)
        except (ValueError, TypeError) as error:
            raise errors.InvalidArgument(
                f"a number is beyond its range: {error}", reason="INVALID_FIELD"
            ) from error


class ChatRequest(_Common):
    """Body of `/v1/chat/completions`."""

    messages: list[_Message]
    max_completion_tokens: int | None = None
    response_format: _Format | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    logprobs: Literal[False] | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def bound(self, parser: Parsing | None) -> Bound:
        """What its tools ask for. Errors: InvalidArgument."""
        parallel = self.parallel_tool_calls is not False
        return Bound(self.tools or (), self.tool_choice, parallel, parser)

    def spec(self, request_id: str, bound: Bound | None = None) -> inference.GenerationSpec:
        """The request as the gate takes it; `bound` where it is known already.

        Errors: InvalidArgument.
        """
        bound = bound or self.bound(None)
        wanted = self.max_completion_tokens
        schema = self._schema()
        if bound.reading is not None and schema is not None:
            raise errors.InvalidArgument.of_field(
                "response_format", "tools and a response_format do not go together: take one"
            )
        sampling = self.sampling(
            self.max_tokens if wanted is None else wanted, bound.schema or schema
        )
        # A parser may look for them; text that is bound to a schema has none.
        sampling.keep_special_tokens = bound.reading is not None and bound.schema is None
        return inference.GenerationSpec(
            request_id=request_id,
            model=self.model,
            chat=inference.ChatPrompt(
                messages=[message.told() for message in self.messages], tools=bound.prompt
            ),
            sampling=sampling,
        )

    def _schema(self) -> str | None:
        form = self.response_format
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return '{"type": "object"}'
        if form.json_schema is None:
            raise errors.InvalidArgument.of_field(
                "response_format", "type json_schema needs a json_schema with a schema"
            )
        return json.dumps(form.json_schema.schema_, sort_keys=True)


class CompletionRequest(_Common):
    """Body of `/v1/completions`: one prompt, a text or its token ids."""

    prompt: str | list[int]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    def spec(self, request_id: str, token_ids: list[int]) -> inference.GenerationSpec:
        """The request as the gate takes it, its prompt in tokens."""
        try:
            prompt = inference.TokenPrompt(token_ids=token_ids)
        except (ValueError, TypeError) as error:
            raise errors.InvalidArgument.of_field("prompt", f"no token id: {error}") from error
        return inference.GenerationSpec(
            request_id=request_id,
            model=self.model,
            tokens=prompt,
            sampling=self.sampling(self.max_tokens, None),
        )


class EmbeddingRequest(Shape):
    """Body of `/v1/embeddings`."""

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None

    def request(self, request_id: str) -> inference.EmbedRequest:
        """The request as the gate takes it. Errors: InvalidArgument."""
        asked = inference.EmbedRequest(request_id=request_id, model=self.model)
        given = self.input
        try:
            if self.dimensions is not None:
                asked.dimensions = self.dimensions
            if isinstance(given, str):
                asked.texts.append(given)
            elif not given:
                raise errors.InvalidArgument.of_field("input", "input: it is empty")
            elif isinstance(given[0], str):
                asked.texts.extend(given)
            elif isinstance(given[0], int):
                asked.inputs.add(token_ids=given)
            else:
                for ids in given:
                    asked.inputs.add(token_ids=ids)
        except (ValueError, TypeError) as error:
            raise errors.InvalidArgument.of_field(
                "input", f"a number is beyond its range: {error}"
            ) from error
        return asked


Read = TypeVar("Read", bound=Shape)


def parse(kind: type[Read], body: bytes) -> Read:
    """Read a body. Errors: InvalidArgument that names the field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        place = found[0]["loc"][:-1]
        # Of what may be one thing or another, the one that was meant is the one read furthest.
        first = max((one for one in found if one["loc"][: len(place)] == place), key=_depth)
        field = ".".join(str(part) for part in first["loc"] if not _is_kind(part))
        problem = (
            f"{field} is not supported here: leave it out"
            if first["type"] == "extra_forbidden"
            else f"{field or 'the body'}: {first['msg']}"
        )
        raise errors.InvalidArgument.of_field(field, problem) from error


def _depth(problem: ErrorDetails) -> int:
    return len(problem["loc"])


def _is_kind(part: int | str) -> bool:
    """Whether a part of a place is no field: pydantic names there which kind of a union it read."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)


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
