"""OpenAI's `tools` and `tool_choice`: how a request with them is bound, and its answer read.

Owns the decision which of three ways a choice's text becomes calls: a named function and
`required` bind the answer to a schema; `auto` leaves the model free, and its own way of writing
calls is read by a parser that the operator names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, Tag

from inference.adapters.openai_forms import OBJECT, TEXT, by_form
from inference.domain import calls
from inference.domain.calls import Json, Reading
from kernel import errors

MAX_TOOLS: Final = 128
_NAME: Final = r"^[A-Za-z0-9_.-]{1,128}$"


class Shape(BaseModel):
    """A body, or a part of one: nothing in it goes unread."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Function(Shape):
    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Shape):
    """A function that the model may call."""

    type: Literal["function"]
    function: _Function


class _Named(Shape):
    name: str


class ToolChoice(Shape):
    """The one function that is to be called."""

    type: Literal["function"]
    function: _Named


class _Called(Shape):
    name: str
    arguments: str


class MadeCall(Shape):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"]
    function: _Called


Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)] | Annotated[ToolChoice, Tag(OBJECT)],
    by_form("'none', 'auto', 'required' or an object that names a function"),
]


class Parsing(Protocol):
    """Makes readings of a model's own way of writing calls (call_parser.CallParser)."""

    def reading(self, tools: Sequence[Json]) -> Reading:
        """For one choice."""
        ...


class Bound:
    """What a request's tools ask of its prompt, its text and its answer.

    `prompt`: the tools for the template; `schema`: what the text must be, or None; `reading`
    makes what reads a choice, None where no call can come. `forced`: one named function.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        choice: Choice | None,
        parallel: bool,
        parser: Parsing | None,
    ) -> None:
        """Errors: InvalidArgument for tools that do not go together."""
        given = [tool.model_dump(exclude_none=True) for tool in tools]
        functions = {tool.function.name: tool.function.parameters or {} for tool in tools}
        if len(functions) != len(tools):
            raise errors.InvalidArgument.of_field("tools", "two functions have one name")
        self.schema: str | None = None
        self.reading: Callable[[], Reading] | None = None
        self.forced = isinstance(choice, ToolChoice)
        self.parallel = parallel
        self.prompt: list[str] = []
        if choice == "none" or not tools:
            if choice not in (None, "none"):
                raise errors.InvalidArgument.of_field("tool_choice", "there are no tools to choose")
            return
        self.prompt = [json.dumps(tool, sort_keys=True) for tool in given]
        if isinstance(choice, ToolChoice):
            name = choice.function.name
            if name not in functions:
                raise errors.InvalidArgument.of_field("tool_choice", f"no tool {name!r} is given")
            self.schema = json.dumps(functions[name] or {"type": "object"}, sort_keys=True)
            self.reading = lambda: calls.Named(name)
        elif choice == "required":
            try:
                schema = calls.schema_of(functions, parallel)
            except (ValueError, AttributeError) as error:
                raise errors.InvalidArgument.of_field("tools", str(error)) from error
            self.schema = json.dumps(schema, sort_keys=True)
            self.reading = calls.Required
        elif parser is None:
            raise errors.InvalidArgument.of_field(
                "tool_choice",
                "auto is not offered: the service was not told how this model writes calls"
                " (TOLLBOOK_TOOL_PARSER). required, or one function by its name, works",
            )
        else:
            self.reading = lambda: parser.reading(given)


class ChoiceTeller:
    """Tells one choice of an answer with tools, in a stream's pieces or whole."""

    def __init__(self, bound: Bound, reading: Reading, request_id: str, choice: int) -> None:
        self._bound = bound
        self._reading = reading
        self._request_id = request_id
        self._choice = choice
        self.called = False

    def feed(self, text: str, token_ids: Sequence[int]) -> Json:
        """Of a piece: the delta's fields; empty when it says nothing yet."""
        return self._told(self._reading.feed(text, token_ids))

    def end(self) -> Json:
        """Of the answer's end: the last delta's fields."""
        return self._told(self._reading.end())

    def _told(self, told: calls.Told) -> Json:
        fields: Json = {"content": told.content} if told.content else {}
        pieces = [
            self._piece(call) for call in told.calls if self._bound.parallel or call.index == 0
        ]
        if pieces:
            self.called = True
            fields["tool_calls"] = pieces
        return fields

    def _piece(self, call: calls.Call) -> Json:
        if call.name is None:
            return {"index": call.index, "function": {"arguments": call.arguments}}
        return {
            "index": call.index,
            "id": calls.call_id(self._request_id, self._choice, call.index),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    @property
    def ends_as_calls(self) -> bool:
        """True where OpenAI says `tool_calls` for a stop: not of a function that was forced."""
        return self.called and not self._bound.forced

    def message(self, text: str, token_ids: Sequence[int]) -> Json:
        """The whole choice as a message."""
        content = ""
        made: dict[int, Json] = {}
        for fields in (self.feed(text, token_ids), self.end()):
            content += fields.get("content", "")
            for piece in fields.get("tool_calls", ()):
                index = piece.pop("index")
                if index in made:
                    made[index]["function"]["arguments"] += piece["function"]["arguments"]
                else:
                    made[index] = piece
        message: Json = {"role": "assistant", "content": content or None, "refusal": None}
        if made:
            message["tool_calls"] = [made[index] for index in sorted(made)]
        elif content == "":
            message["content"] = ""
        return message
