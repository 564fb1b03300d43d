"""Fields that this version does not know are named, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import Message

from kernel import errors
from kernel.unread import refuse_unread
from tollbook.inference.v1 import inference_pb2 as inference

NEWER = b"\xf2\x3f\x01x"  # field 1022, length-delimited
"""A field that no message of the contract has."""


def newer(message: Message) -> None:
    """Give a message a field of a later contract."""
    message.MergeFromString(NEWER)


def asked() -> inference.GenerateRequest:
    spec = inference.GenerationSpec(
        model="tiny",
        chat=inference.ChatPrompt(
            messages=[
                inference.ChatMessage(role="user", content="hi"),
                inference.ChatMessage(
                    role="assistant", tool_calls=[inference.ToolCall(name="f", arguments="{}")]
                ),
            ],
            tools=["{}"],
        ),
        sampling=inference.SamplingParams(max_tokens=3, stop=["a"]),
    )
    return inference.GenerateRequest(spec=spec)


def test_what_is_known_is_read() -> None:
    refuse_unread(asked())
    refuse_unread(inference.EmbedRequest(model="m", inputs=[inference.TokenPrompt(token_ids=[1])]))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (lambda it: it, "the request has a field 1022"),
        (lambda it: it.spec, "spec has a field 1022"),
        (lambda it: it.spec.sampling, "spec.sampling has a field 1022"),
        (lambda it: it.spec.chat.messages[1], "spec.chat.messages[1] has a field 1022"),
        (
            lambda it: it.spec.chat.messages[1].tool_calls[0],
            "spec.chat.messages[1].tool_calls[0] has a field 1022",
        ),
    ],
)
def test_what_is_not_is_refused_by_its_place(
    place: Callable[[inference.GenerateRequest], Message], told: str
) -> None:
    request = asked()
    newer(place(request))
    with pytest.raises(errors.InvalidArgument) as caught:
        refuse_unread(request)
    assert caught.value.message.startswith(told)
