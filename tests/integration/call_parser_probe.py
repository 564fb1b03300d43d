"""Reads calls with vLLM's parser in a process of its own, which vLLM's import changes for good.

`python call_parser_probe.py MODEL`: prints what was read, as JSON, for pieces of 1, 3 and 1,000
tokens, and last what is said of a parser that is not there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from inference.adapters.call_parser import CallParser
from inference.adapters.models import ModelUnusable
from inference.adapters.openai_tools import Bound, ChoiceTeller, Tool

PIECES = (1, 3, 1_000)
TOOL = Tool.model_validate(
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
)
ARGUMENTS = '{"city": "Paris", "days": [1, 2]}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'


def read(parser: CallParser, model: Path, piece: int) -> dict[str, Any]:
    """What a caller of a stream would put together."""
    bound = Bound([TOOL], "auto", True, parser)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode(f"Let me look. {CALL}\n{CALL}").ids
    assert bound.reading is not None
    teller = ChoiceTeller(bound, bound.reading(), "r", 0)
    told = []
    for begin in range(0, len(ids), piece):
        some = ids[begin : begin + piece]
        text = tokenizer.decode(ids[: begin + piece])[len(tokenizer.decode(ids[:begin])) :]
        told.append(teller.feed(text, some))
    told.append(teller.end())
    names: list[str] = []
    arguments: dict[int, str] = {}
    for call in (call for one in told for call in one.get("tool_calls", ())):
        names += [call["function"]["name"]] if "id" in call else []
        index = call["index"]
        arguments[index] = arguments.get(index, "") + call["function"]["arguments"]
    return {
        "content": "".join(one.get("content", "") for one in told).strip(),
        "names": names,
        "arguments": [json.loads(text) for text in arguments.values()],
        "ends_as_calls": teller.ends_as_calls,
    }


def main() -> None:
    """Read, and print."""
    model = Path(sys.argv[1])
    parser = CallParser("hermes", model)
    for piece in PIECES:
        print(json.dumps(read(parser, model, piece)))
    try:
        CallParser("herms", model)
    except ModelUnusable as error:
        print(json.dumps(str(error)))


if __name__ == "__main__":
    main()
