"""A batch's line between OpenAI's words and the gate's: its body read, its end told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from inference.adapters import openai_shapes as shapes
from inference.app.batch_line import Answered, Refused
from kernel import grpcs
from kernel.clock import Clock
from tollbook.inference.v1 import inference_pb2 as inference

_CHAT = "/v1/chat/completions"


class Lines:
    """`encode` gives a text's token ids."""

    def __init__(self, encode: Callable[[str], list[int]], clock: Clock) -> None:
        self._encode = encode
        self._clock = clock

    async def read(self, endpoint: str, body: bytes, request_id: str) -> inference.GenerationSpec:
        """The request of a line's body, under an id. Errors: InvalidArgument."""
        if endpoint == _CHAT:
            spec = shapes.parse(shapes.ChatRequest, body).spec(request_id)
        else:
            asked = shapes.parse(shapes.CompletionRequest, body)
            prompt = asked.prompt
            if isinstance(prompt, str):
                prompt = await asyncio.to_thread(self._encode, prompt)
            spec = asked.spec(request_id, prompt)
        grpcs.check(inference.GenerateOnceRequest(spec=spec))
        return spec

    def tell(self, endpoint: str, body: bytes, done: Answered | Refused) -> tuple[int, shapes.Json]:
        """(HTTP status, body) of its end, as a caller of its own would have got them."""
        if isinstance(done, Refused):
            status, told, _headers = shapes.error_of(done.error, done.summary)
            return status, told
        model = json.loads(body)["model"]
        teller = shapes.Teller(endpoint == _CHAT, model, self._clock.now_us() // 1_000_000)
        teller.request_id = done.request_id
        return 200, teller.whole(done.choices, done.summary)
