"""Calls of functions in a model's answer that was bound to a schema. Pure.

`required` binds the answer to a JSON array of `{name, parameters}`; a named function binds it to
that function's parameters alone. Either way text becomes calls here, piece by piece as it comes
or all at once, with the same end. What is no whole call stays text: nothing is lost.

Format: OpenAI's `tools` and `tool_choice` of chat completions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A piece of a call: its number in the choice, its name with the first piece, arguments."""

    index: int
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Told:
    """What a piece of text says: text for people, and pieces of calls."""

    content: str = ""
    calls: tuple[Call, ...] = ()


class Reading(Protocol):
    """Reads one choice's text as it comes."""

    def feed(self, text: str, token_ids: Sequence[int]) -> Told:
        """The next piece of the answer."""
        ...

    def end(self) -> Told:
        """The answer has ended: what was kept back."""
        ...


def call_id(request_id: str, choice: int, index: int) -> str:
    """A call's id: the same however often the answer is told."""
    digest = hashlib.sha256(f"{request_id}\n{choice}\n{index}".encode()).hexdigest()
    return f"call_{digest[:24]}"


def schema_of(functions: Mapping[str, Json], parallel: bool) -> Json:
    """What an answer of one or more calls must be. Errors: ValueError for definitions of two
    functions that share a name and not their meaning.
    """
    definitions: Json = {}
    kinds = []
    for name, parameters in functions.items():
        own = dict(parameters)
        for key in ("$defs", "definitions"):
            for defined, meaning in own.pop(key, {}).items():
                if definitions.setdefault(key, {}).setdefault(defined, meaning) != meaning:
                    raise ValueError(f"two functions define {defined!r} differently")
        kinds.append(
            {
                "type": "object",
                "properties": {"name": {"enum": [name]}, "parameters": own or {"type": "object"}},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    bound: Json = {"type": "array", "minItems": 1, "items": {"anyOf": kinds}}
    return {**bound, **definitions, **({} if parallel else {"maxItems": 1})}


@dataclass
class Named:
    """The whole answer is one function's arguments."""

    name: str
    _begun: bool = False

    def feed(self, text: str, token_ids: Sequence[int]) -> Told:
        """See Reading."""
        if not text:
            return Told()
        name = None if self._begun else self.name
        self._begun = True
        return Told(calls=(Call(0, name, text),))

    def end(self) -> Told:
        """See Reading."""
        return Told()


@dataclass
class Required:
    """The answer is an array of calls; each is told when it is whole."""

    _text: str = ""
    _at: int = 0
    _begin: int = 0
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False
    _calls: int = 0
    _found: list[Call] = field(default_factory=list)

    def feed(self, text: str, token_ids: Sequence[int]) -> Told:
        """See Reading."""
        self._text += text
        while self._at < len(self._text):
            self._take(self._text[self._at])
            self._at += 1
        found, self._found = tuple(self._found), []
        # What was told is not kept.
        if found:
            self._text, self._begin = self._text[self._begin :], 0
            self._at = len(self._text)
        return Told(calls=found)

    def _take(self, letter: str) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif letter == "\\":
                self._escaped = True
            elif letter == '"':
                self._in_string = False
        elif letter == '"':
            self._in_string = True
        elif letter in "{[":
            self._depth += 1
            if letter == "{" and self._depth == 2:
                self._begin = self._at
        elif letter in "}]":
            self._depth -= 1
            if letter == "}" and self._depth == 1:
                self._add(self._text[self._begin : self._at + 1])

    def _add(self, text: str) -> None:
        try:
            value = json.loads(text)
            name, parameters = value["name"], value["parameters"]
        except (ValueError, KeyError, TypeError):
            return
        arguments = json.dumps(parameters, ensure_ascii=False)
        self._found.append(Call(self._calls, str(name), arguments))
        self._calls += 1
        self._begin = self._at + 1

    def end(self) -> Told:
        """See Reading."""
        # Cut off before a call was whole: the caller sees what there is.
        if not self._calls:
            return Told(content=self._text)
        return Told(content=self._text[self._begin :] if self._depth > 1 else "")
