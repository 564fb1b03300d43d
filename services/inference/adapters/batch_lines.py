"""A batch's line between OpenAI's words and the gate's: its body read, its end told."""

from __future__ import annotations

import json

from inference.adapters import openai_answers
from inference.adapters import openai_shapes as shapes
from inference.adapters.openai_bodies import Bodies
from inference.adapters.openai_teller import Teller
from inference.app.batch_line import Answered, Refused, Spec
from kernel.clock import Clock

_CHAT = "/v1/chat/completions"
_EMBEDDINGS = "/v1/embeddings"


class Lines:
    """`bodies` are those of the door that batches are sent through."""

    def __init__(self, bodies: Bodies, clock: Clock) -> None:
        self._bodies = bodies
        self._clock = clock

    async def read(self, endpoint: str, body: bytes, request_id: str) -> Spec:
        """The request of a line's body, under an id. Errors: InvalidArgument."""
        if endpoint == _EMBEDDINGS:
            return self._bodies.embedding(body, request_id)[1]
        read = self._bodies.chat if endpoint == _CHAT else self._bodies.completion
        return (await read(body, request_id)).spec

    def tell(self, endpoint: str, body: bytes, done: Answered | Refused) -> tuple[int, shapes.Json]:
        """(HTTP status, body) of its end, as a caller of its own would have got them."""
        if isinstance(done, Refused):
            status, told, _headers = openai_answers.error_of(done.error, done.summary)
            return status, told
        if done.embedded is not None:
            in_base64, asked = self._bodies.embedding(body, done.request_id)
            return 200, openai_answers.embeddings_of(done.embedded, asked.model, in_base64)
        created_s = self._clock.now_us() // 1_000_000
        if endpoint == _CHAT:
            chat = shapes.parse(shapes.ChatRequest, body)
            teller = Teller(True, chat.model, created_s, chat.bound(self._bodies.parser))
        else:
            teller = Teller(False, json.loads(body)["model"], created_s)
        teller.request_id = done.request_id
        return 200, teller.whole(done.choices, done.summary)
