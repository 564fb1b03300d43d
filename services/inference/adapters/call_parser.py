"""Calls of functions that a model writes in its own way, read by vLLM's parser for it.

Owns the loading of a parser by name and the reading of one choice with it. Text goes in, in the
pieces that the caller is given; what the parser makes of it comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from inference.adapters.models import ModelUnusable
from inference.domain.calls import Call, Json, Reading, Told

log = structlog.get_logger()


class CallParser:
    """Makes a reading for each choice."""

    def __init__(self, name: str, model: Path) -> None:
        """Load a parser and the model's tokenizer. Takes a second. Errors: ModelUnusable."""
        from vllm.tokenizers import get_tokenizer
        from vllm.tool_parsers import ToolParserManager

        try:
            self._kind = ToolParserManager.get_tool_parser(name)
        except KeyError as error:
            known = ", ".join(sorted(ToolParserManager.list_registered()))
            raise ModelUnusable(
                f"TOLLBOOK_TOOL_PARSER: there is no parser {name!r}; there are {known}"
            ) from error
        self._tokenizer: Any = get_tokenizer(str(model))

    def reading(self, tools: Sequence[Json]) -> Reading:
        """For one choice of an answer with these tools."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request: Any = ChatCompletionRequest.model_validate(
            {"model": "", "messages": [], "tools": list(tools), "tool_choice": "auto"}
        )
        return _Reading(self._kind(self._tokenizer, request.tools), request)


class _Reading:
    """One choice. A parser that fails leaves the text as it is."""

    def __init__(self, parser: Any, request: Any) -> None:
        self._parser = parser
        self._request = request
        self._text = ""
        self._ids: list[int] = []
        self._named: set[int] = set()
        self._broken = False

    def feed(self, text: str, token_ids: Sequence[int]) -> Told:
        """See Reading."""
        before, ids_before = self._text, list(self._ids)
        self._text += text
        self._ids.extend(token_ids)
        if self._broken:
            return Told(content=text)
        try:
            delta = self._parser.extract_tool_calls_streaming(
                before, self._text, text, ids_before, self._ids, list(token_ids), self._request
            )
        except Exception:
            log.exception("a tool parser failed; the text is given as it is")
            self._broken = True
            return Told(content=text)
        if delta is None:
            return Told()
        return Told(delta.content or "", tuple(map(self._piece, delta.tool_calls or ())))

    def _piece(self, call: Any) -> Call:
        function = call.function
        name = function.name if function is not None and call.index not in self._named else None
        if name:
            self._named.add(call.index)
        arguments = (function.arguments if function is not None else None) or ""
        return Call(call.index, name or None, arguments)

    def end(self) -> Told:
        """See Reading."""
        if self._broken or not self._named:
            return Told()
        left = self._parser.get_remaining_unstreamed_args()
        return Told(calls=(Call(max(self._named), None, left),)) if left else Told()
