"""Our own tokenizer and chat template, beside a server that has its own.

Owns rendering and recounting for an engine that is not in this process: what is sent is
known in tokens before it is sent, and what comes back can be read again. Format: the
tokenizer files of a Hugging Face model directory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from inference.adapters.conversation import messages_of, tools_of
from inference.adapters.models import ModelUnusable
from inference.adapters.prompts import invalid, length_problem, unrenderable
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference

# So much of the prompt decides how the first generated token is spelled.
_CONTEXT_IDS: Final = 6


class Words:
    """One tokenizer. Long texts are tokenized in a thread, one at a time: the library's
    tokenizers are not to be shared.
    """

    def __init__(self, model: Path) -> None:
        """Errors: ModelUnusable."""
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
        except Exception as error:
            raise ModelUnusable(f"the tokenizer in {model} cannot be read: {error}") from error
        self._ids = len(self._tokenizer)
        self.end_of_text_id: int | None = self._tokenizer.eos_token_id
        self._thread = ThreadPoolExecutor(1, "words")

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False)

    async def render(self, spec: inference.GenerationSpec, context_tokens: int) -> list[int]:
        """A prompt's ids. Errors: InvalidArgument (over-length, unknown ids, no such roles)."""
        if spec.sampling.keep_special_tokens:
            raise errors.InvalidArgument.of_field(
                "spec.sampling.keep_special_tokens",
                "the server that generates gives text without special tokens",
            )
        if spec.WhichOneof("prompt") == "tokens":
            ids, field = list(spec.tokens.token_ids), "spec.tokens.token_ids"
        else:
            loop = asyncio.get_running_loop()
            ids, field = await loop.run_in_executor(self._thread, self._chat, spec), "spec.chat"
        problem = length_problem(ids, context_tokens)
        if not problem and not self.knows(ids):
            problem = f"token id {max(ids)} is out of the vocabulary of {self._ids}"
        if problem:
            raise invalid(field, problem)
        return ids

    def _chat(self, spec: inference.GenerationSpec) -> list[int]:
        messages = messages_of(spec)
        tools = tools_of(spec, self._tokenizer.chat_template)
        try:
            given = self._tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        except Exception as error:
            problem = f"the conversation cannot be rendered: {error}"
            raise unrenderable("spec.chat", problem) from error
        return list(given)

    async def encode(self, text: str) -> list[int]:
        """A text's ids, with what the tokenizer adds of itself."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: list(self._tokenizer.encode(text)))

    def count(self, text: str) -> list[int]:
        """A piece of text in ids, by our own tokenizer."""
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def knows(self, ids: Sequence[int]) -> bool:
        """True when all of them stand in the vocabulary."""
        return not ids or max(ids) < self._ids

    def decode(self, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> str:
        """What the output says, read after the prompt's end, without special tokens."""
        before = list(prompt_ids[-_CONTEXT_IDS:])
        prefix: str = self._tokenizer.decode(before, skip_special_tokens=True)
        whole: str = self._tokenizer.decode([*before, *output_ids], skip_special_tokens=True)
        if whole.startswith(prefix):
            return whole[len(prefix) :]
        alone: str = self._tokenizer.decode(list(output_ids), skip_special_tokens=True)
        return alone
