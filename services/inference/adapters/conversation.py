"""A conversation as chat templates take it: its messages, its calls of tools, its tools.

Format: Hugging Face chat templates, whose words are OpenAI's.
"""

from __future__ import annotations

import json
from typing import Any

from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference


def messages_of(spec: inference.GenerationSpec) -> list[dict[str, Any]]:
    """The messages in order. Errors: InvalidArgument for arguments that are not JSON."""
    return [_message(number, message) for number, message in enumerate(spec.chat.messages)]


def _message(number: int, message: inference.ChatMessage) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        field = f"spec.chat.messages[{number}].tool_calls"
        told["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    # Templates write them themselves.
                    "arguments": _json(field, call.arguments or "{}"),
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        told["tool_call_id"] = message.tool_call_id
    return told


def tools_of(spec: inference.GenerationSpec, template: object) -> list[Any]:
    """The tools, for a template that knows them. Errors: InvalidArgument."""
    if not spec.chat.tools:
        return []
    # One that does not name them would leave them out in silence.
    if "tools" not in str(template or ""):
        raise errors.InvalidArgument.of_field(
            "spec.chat.tools", "this model's chat template knows no tools: leave them out"
        )
    return [
        _json(f"spec.chat.tools[{number}]", text) for number, text in enumerate(spec.chat.tools)
    ]


def _json(field: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidArgument.of_field(field, f"{field}: not JSON: {error}") from error
