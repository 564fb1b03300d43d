"""OpenAI's shapes of requests, read into ours.

Owns the translation and nothing that waits or counts; openai_answers.py has the way back. A
parameter that would change the answer and cannot be honoured is refused by name, never passed over
in silence.

Format: OpenAI's HTTP API, `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, Tag, ValidationError

from inference.adapters.openai_forms import (
    LIST,
    LISTS,
    NUMBERS,
    TEXT,
    TEXTS,
    by_form,
    by_items,
    field_of,
    is_unknown,
)
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

Json = dict[str, Any]


class _StreamOptions(Shape):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class _TextPart(Shape):
    type: Literal["text"]
    text: str


class _Message(Shape):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Tag(TEXT)] | Annotated[list[_TextPart], Tag(LIST)],
            by_form("a text or a list of parts"),
        ]
        | None
    ) = None
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
    stop: (
        Annotated[
            Annotated[str, Tag(TEXT)] | Annotated[list[str], Tag(LIST)],
            by_form("a text or a list of texts"),
        ]
        | None
    ) = None
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

    prompt: Annotated[
        Annotated[str, Tag(TEXT)] | Annotated[list[int], Tag(LIST)],
        by_form("a text or a list of token ids"),
    ]
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
    input: Annotated[
        Annotated[str, Tag(TEXT)]
        | Annotated[list[str], Tag(TEXTS)]
        | Annotated[list[int], Tag(NUMBERS)]
        | Annotated[list[list[int]], Tag(LISTS)],
        by_items("a text, a list of texts, a list of token ids or a list of such lists"),
    ]
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
        first = error.errors(include_url=False, include_input=False)[0]
        field = field_of(first)
        problem = (
            f"{field} is not supported here: leave it out"
            if is_unknown(first)
            else f"{field or 'the body'}: {first['msg']}"
        )
        raise errors.InvalidArgument.of_field(field, problem) from error
