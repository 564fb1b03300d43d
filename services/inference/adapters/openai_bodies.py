"""A body in OpenAI's words, of a request or of a batch's line, read as the gate takes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from inference.adapters import openai_shapes as shapes
from inference.adapters.openai_tools import Bound, Parsing
from kernel import grpcs
from tollbook.inference.v1 import inference_pb2 as inference


@dataclass(frozen=True, slots=True)
class Asked:
    """`spec` is within the contract; `bound` is a chat's, None of a completion."""

    body: shapes.ChatRequest | shapes.CompletionRequest
    spec: inference.GenerationSpec
    bound: Bound | None


class Bodies:
    """`encode` gives a text's token ids; `parser` reads the calls of functions that the model
    makes of itself, where there is one.
    """

    def __init__(
        self, encode: Callable[[str], Awaitable[list[int]]], parser: Parsing | None
    ) -> None:
        self._encode = encode
        self.parser = parser

    async def chat(self, body: bytes, request_id: str) -> Asked:
        """Of `/v1/chat/completions`. Errors: InvalidArgument."""
        chat = shapes.parse(shapes.ChatRequest, body)
        bound = chat.bound(self.parser)
        return _checked(Asked(chat, chat.spec(request_id, bound), bound))

    async def completion(self, body: bytes, request_id: str) -> Asked:
        """Of `/v1/completions`. Errors: InvalidArgument."""
        asked = shapes.parse(shapes.CompletionRequest, body)
        prompt = asked.prompt
        if isinstance(prompt, str):
            prompt = await self._encode(prompt)
        return _checked(Asked(asked, asked.spec(request_id, prompt), None))

    @staticmethod
    def embedding(body: bytes, request_id: str) -> tuple[bool, inference.EmbedRequest]:
        """(whether vectors are told in base64, the request) of `/v1/embeddings`.

        Errors: InvalidArgument.
        """
        asked = shapes.parse(shapes.EmbeddingRequest, body)
        request = asked.request(request_id)
        grpcs.check(request)
        return asked.encoding_format == "base64", request


def _checked(asked: Asked) -> Asked:
    grpcs.check(inference.GenerateOnceRequest(spec=asked.spec))
    return asked
