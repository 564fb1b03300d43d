"""Texts in token ids, by a tokenizer of its own: the engine's is told anew with each use where to
cut, and is not to be shared. Read once, beside whatever else goes on at the start.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tokenizers import Tokenizer


class Encoder:
    """Of a model directory with a `tokenizer.json`. Everything runs on one event loop."""

    def __init__(self, model: Path) -> None:
        self._file = model / "tokenizer.json"
        self._reading: asyncio.Task[Tokenizer] | None = None

    def begin(self) -> asyncio.Task[Tokenizer]:
        """Have it read, in a thread: a large vocabulary takes a second."""
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._read), name="tokenizer")
        return self._reading

    def _read(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self._file))
        # Its file may ask for both.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    async def encode(self, text: str) -> list[int]:
        """A text's ids, with what the tokenizer adds of itself."""
        tokenizer = await asyncio.shield(self.begin())
        ids: list[int] = (await asyncio.to_thread(tokenizer.encode, text)).ids
        return ids
