"""Our answers told in OpenAI's words, whole or in chunks.

Format: OpenAI's HTTP API, the objects of chat completions and completions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from inference.adapters.openai_answers import usage_of
from inference.adapters.openai_shapes import Json
from inference.adapters.openai_tools import Bound, ChoiceTeller
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

_FINISH: Final[dict[int, str]] = {
    usage.FINISH_REASON_STOP: "stop",
    usage.FINISH_REASON_LENGTH: "length",
    usage.FINISH_REASON_ABORT: "abort",
    usage.FINISH_REASON_ERROR: "error",
    usage.FINISH_REASON_REPETITION: "stop",
}


class Teller:
    """Tells one request's answer in the words of chat or of completions."""

    def __init__(self, chat: bool, model: str, created_s: int, bound: Bound | None = None) -> None:
        """`bound`: of a request with tools."""
        self._bound = bound
        self._tellers: dict[int, ChoiceTeller] = {}
        self._chat = chat
        self._model = model
        self._created_s = created_s
        self.request_id = ""

    def _head(self, kind: str) -> Json:
        return {
            "id": self.request_id,
            "object": kind,
            "created": self._created_s,
            "model": self._model,
        }

    def _teller(self, index: int) -> ChoiceTeller | None:
        """What tells a choice in which calls may come."""
        bound = self._bound
        if bound is None or bound.reading is None:
            return None
        if index not in self._tellers:
            teller = ChoiceTeller(bound, bound.reading(), self.request_id, index)
            self._tellers[index] = teller
        return self._tellers[index]

    def _choice(self, index: int, finish: int | None, **content: Any) -> Json:
        reason = None if finish is None else _FINISH.get(finish, "stop")
        teller = self._tellers.get(index)
        if reason == "stop" and teller is not None and teller.ends_as_calls:
            reason = "tool_calls"
        return {"index": index, **content, "logprobs": None, "finish_reason": reason}

    def _whole_content(self, choice: inference.Choice) -> Json:
        if not self._chat:
            return {"text": choice.text}
        teller = self._teller(choice.index)
        if teller is not None:
            return {"message": teller.message(choice.text, choice.token_ids)}
        return {"message": {"role": "assistant", "content": choice.text, "refusal": None}}

    def whole(self, choices: Iterable[inference.Choice], summary: inference.UsageSummary) -> Json:
        """The answer in one object."""
        told = []
        for choice in choices:
            content = self._whole_content(choice)
            told.append(self._choice(choice.index, choice.finish_reason, **content))
        head = self._head("chat.completion" if self._chat else "text_completion")
        return {**head, "choices": told, "usage": usage_of(summary)}

    def chunk(self, message: inference.GenerateResponse) -> Json | None:
        """One message of a stream; None where OpenAI's stream has none."""
        if message.HasField("started"):
            self.request_id = message.started.request_id
            return None
        head = self._head("chat.completion.chunk" if self._chat else "text_completion")
        if message.HasField("usage"):
            return {**head, "choices": [], "usage": usage_of(message.usage)}
        finish: int | None = None
        if message.HasField("finished"):
            index, text, finish = message.finished.choice, "", message.finished.finish_reason
        else:
            index, text = message.delta.choice, message.delta.text
        content: Json = {"text": text}
        if self._chat:
            teller = self._teller(index)
            if teller is not None:
                ended = finish is not None
                told = teller.end() if ended else teller.feed(text, message.delta.token_ids)
                if not told and not ended:
                    return None
                content = {"delta": {"role": "assistant", **told} if told else {}}
            else:
                told = {"role": "assistant", "content": text} if finish is None else {}
                content = {"delta": told}
        return {**head, "choices": [self._choice(index, finish, **content)]}
