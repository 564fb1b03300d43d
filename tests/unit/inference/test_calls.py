"""Calls of functions: however an answer is cut into pieces, its calls are the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.adapters import openai_shapes as shapes
from inference.adapters.openai_teller import Teller
from inference.adapters.openai_tools import ChoiceTeller
from inference.domain import calls
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["f", "g"]), st.dictionaries(st.text(), JSON, max_size=3)),
    min_size=1,
    max_size=4,
)


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("f", type="object", properties={"a": {"type": "integer"}}), tool("g", type="object")]


def asked(**fields: Any) -> shapes.ChatRequest:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
    return shapes.parse(shapes.ChatRequest, json.dumps({**body, **fields}).encode())


@given(made=CALLS, indent=st.sampled_from([None, 1]), data=st.data())
def test_an_array_of_calls_is_read_alike_in_any_pieces(
    made: list[tuple[str, dict[str, Any]]], indent: int | None, data: Any
) -> None:
    text = json.dumps(
        [{"name": name, "parameters": parameters} for name, parameters in made], indent=indent
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    reading = calls.Required()
    told = [reading.feed(piece, []) for piece in pieces]
    found = [call for one in told for call in one.calls]
    assert reading.end() == calls.Told()
    assert [call.index for call in found] == list(range(len(made)))
    assert [(call.name, json.loads(call.arguments)) for call in found] == made


@given(made=CALLS, data=st.data())
def test_of_an_array_that_is_cut_off_nothing_is_lost(
    made: list[tuple[str, dict[str, Any]]], data: Any
) -> None:
    whole = [json.dumps({"name": name, "parameters": parameters}) for name, parameters in made]
    text = f"[{','.join(whole)}]"
    cut = data.draw(st.integers(0, len(text)))
    reading = calls.Required()
    found = reading.feed(text[:cut], []).calls
    ends = [1 + sum(map(len, whole[: n + 1])) + n for n in range(len(whole))]
    assert len(found) == sum(end <= cut for end in ends)
    left = reading.end().content
    if not found:
        assert left == text[:cut]
    else:
        begin = ends[len(found) - 1]
        assert left == (text[begin + 1 : cut] if text[begin + 1 : cut].startswith("{") else "")


def test_a_schema_binds_each_function_to_its_own_parameters() -> None:
    kinds = {"f": {"type": "object", "$defs": {"x": {"type": "null"}}}, "g": {}}
    schema = calls.schema_of(kinds, parallel=True)
    assert schema["$defs"] == {"x": {"type": "null"}}
    assert "maxItems" not in schema
    assert [kind["properties"] for kind in schema["items"]["anyOf"]] == [
        {"name": {"enum": ["f"]}, "parameters": {"type": "object"}},
        {"name": {"enum": ["g"]}, "parameters": {"type": "object"}},
    ]
    assert calls.schema_of(kinds, parallel=False)["maxItems"] == 1
    with pytest.raises(ValueError, match="'x' differently"):
        calls.schema_of({"f": {"$defs": {"x": {}}}, "g": {"$defs": {"x": {"type": "null"}}}}, True)


def test_what_is_chosen_decides_prompt_and_schema() -> None:
    free = asked(tool_choice="none").bound(None)
    assert (free.prompt, free.schema, free.reading) == ([], None, None)
    required = asked(tool_choice="required")
    spec = required.spec("r", required.bound(None))
    assert [json.loads(text) for text in spec.chat.tools] == TOOLS
    assert json.loads(spec.sampling.json_schema)["type"] == "array"
    named = asked(tool_choice={"type": "function", "function": {"name": "f"}})
    spec = named.spec("r", named.bound(None))
    assert json.loads(spec.sampling.json_schema) == TOOLS[0]["function"]["parameters"]
    assert not spec.sampling.keep_special_tokens


class Shouting:
    """A parser for which all that is written in capitals is a call."""

    def reading(self, tools: Any) -> Any:
        return self

    def feed(self, text: str, token_ids: Any) -> calls.Told:
        if text.isupper():
            return calls.Told(calls=(calls.Call(0, text, ""), calls.Call(1, text, "{}")))
        return calls.Told(content=text)

    def end(self) -> calls.Told:
        return calls.Told(calls=(calls.Call(0, None, "{}"),))


def test_auto_is_read_by_the_parser_and_refused_without_one() -> None:
    for fields in ({}, {"tool_choice": "auto"}):
        request = asked(**fields)
        with pytest.raises(errors.InvalidArgument, match="TOLLBOOK_TOOL_PARSER"):
            request.bound(None)
        bound = request.bound(Shouting())
        spec = request.spec("r", bound)
        assert not spec.sampling.HasField("json_schema")
        assert spec.sampling.keep_special_tokens
        assert bound.reading is not None
        message = ChoiceTeller(bound, bound.reading(), "r", 0).message("F", [])
        assert [call["function"] for call in message["tool_calls"]] == [
            {"name": "F", "arguments": "{}"},
            {"name": "F", "arguments": "{}"},
        ]
    one = asked(parallel_tool_calls=False).bound(Shouting())
    assert one.reading is not None
    assert len(ChoiceTeller(one, one.reading(), "r", 0).message("F", [])["tool_calls"]) == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [*TOOLS, TOOLS[0]], "tool_choice": "required"}, "tools"),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"messages": [{"role": "user"}], "tool_choice": "none"}, "messages"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    request = asked(**fields)
    with pytest.raises(errors.InvalidArgument) as caught:
        request.spec("r", request.bound(None))
    assert caught.value.violations[0].field == field


def test_a_conversation_with_calls_is_given_whole() -> None:
    made = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    request = asked(
        tool_choice="required",
        messages=[
            {"role": "assistant", "content": None, "tool_calls": [made]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ],
    )
    first, second = request.spec("r", request.bound(None)).chat.messages
    assert first.content == ""
    assert [(call.id, call.name, call.arguments) for call in first.tool_calls] == [
        ("c1", "f", '{"a": 1}')
    ]
    assert (second.tool_call_id, second.content) == ("c1", "2")


@pytest.mark.parametrize(
    ("choice", "text", "finish"),
    [
        ("required", '[{"name": "f", "parameters": {"a": 1}}]', "tool_calls"),
        ({"type": "function", "function": {"name": "f"}}, '{"a": 1}', "stop"),
    ],
)
def test_streamed_and_whole_tell_the_same_calls(choice: Any, text: str, finish: str) -> None:
    bound = asked(tool_choice=choice).bound(None)

    def teller() -> Teller:
        made = Teller(True, "tiny", 1, bound)
        made.request_id = "r"
        return made

    stop = usage.FINISH_REASON_STOP
    whole = teller().whole([inference.Choice(text=text, finish_reason=stop)], _summary())
    (told,) = whole["choices"]
    (call,) = told["message"]["tool_calls"]
    assert told["finish_reason"] == finish
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("f", {"a": 1})
    streamed = teller()
    chunks = [
        streamed.chunk(inference.GenerateResponse(delta=inference.Delta(text=letter)))
        for letter in text
    ]
    chunks.append(
        streamed.chunk(inference.GenerateResponse(finished=inference.Finished(finish_reason=stop)))
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk is not None]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    assert pieces[0]["id"] == call["id"]
    joined = "".join(piece["function"]["arguments"] for piece in pieces)
    assert json.loads(joined) == {"a": 1}
    last = chunks[-1]
    assert last is not None
    assert last["choices"][0]["finish_reason"] == finish


def _summary() -> inference.UsageSummary:
    return inference.UsageSummary(request_id="r", prompt_tokens=1, output_tokens=1)


def test_no_two_calls_of_an_answer_have_one_id() -> None:
    ids = {calls.call_id(r, c, i) for r in ("a", "b") for c in range(3) for i in range(3)}
    assert len(ids) == 18
