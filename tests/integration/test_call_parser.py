"""vLLM's own parser of calls, as the HTTP door uses it: in pieces and whole, the same calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from inference import tinymodel
from inference.adapters.call_parser import CallParser
from inference.adapters.models import ModelUnusable
from inference.adapters.openai_tools import Bound, ChoiceTeller, Tool

pytestmark = [pytest.mark.integration, pytest.mark.engine]

TOOL = Tool.model_validate(
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
)
ARGUMENTS = '{"city": "Paris", "days": [1, 2]}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
WANTED = {"city": "Paris", "days": [1, 2]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tinymodel.make(folder)
    return folder / "model"


@pytest.mark.parametrize("piece", [1, 3, 1_000])
def test_hermes_is_read_in_any_pieces(model: Path, piece: int) -> None:
    bound = Bound([TOOL], "auto", True, CallParser("hermes", model))
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
    assert "".join(one.get("content", "") for one in told).strip() == "Let me look."
    arguments = {0: "", 1: ""}
    for call in (call for one in told for call in one.get("tool_calls", ())):
        arguments[call["index"]] += call["function"]["arguments"]
    assert [json.loads(text) for text in arguments.values()] == [WANTED, WANTED]
    assert teller.ends_as_calls


def test_a_parser_that_is_not_there_is_named_with_those_that_are(model: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"no parser 'herms'; there are .*hermes"):
        CallParser("herms", model)
