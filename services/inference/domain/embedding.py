"""Counting one embedding request: tokens that became vectors, and what was given of them.

Owns the rules of what is one token of an embedding. An input counts when its vector came,
whole, and not before; an answer is all its vectors or none, so that its tokens are delivered
together or not at all. The prompt counts like this, and not as generation's does, because it is
all that an engine of this kind has a counter of.
"""

from __future__ import annotations

from typing import Final

from inference.domain.claims import Doubt
from inference.domain.counting import ChoiceTally
from tollbook.usage.v1 import usage_pb2 as usage

NO_CHOICES: Final = 0
"""What stands as the number of choices where vectors are made."""


class EmbeddingTally:
    """The count of one embedding request; see counting.Tally, whose place it takes.

    Raises ValueError for more tokens than its inputs have.
    """

    __slots__ = ("_beyond", "_doubted", "delivered", "embedded_tokens", "prompt_tokens")

    choices: tuple[ChoiceTally, ...] = ()

    def __init__(self, prompt_tokens: int) -> None:
        if prompt_tokens < 1:
            raise ValueError(f"inputs of {prompt_tokens} tokens")
        self.prompt_tokens = prompt_tokens
        self.embedded_tokens = 0
        self.delivered = False
        self._doubted = 0
        self._beyond = 0

    def add(self, tokens: int, doubt: Doubt) -> None:
        """Vectors came of inputs of so many tokens."""
        if tokens < 1 or self.embedded_tokens + tokens > self.prompt_tokens:
            raise ValueError(f"{tokens} more tokens embedded of {self.prompt_tokens}")
        if not 0 <= doubt.prompt_tokens <= tokens or doubt.beyond_tokens < 0:
            raise ValueError(f"{doubt} of {tokens} tokens")
        self.embedded_tokens += tokens
        self._doubted += doubt.prompt_tokens
        self._beyond += doubt.beyond_tokens

    @property
    def made_tokens(self) -> int:
        """What the engine made: more than 0 from the first vector on."""
        return self.embedded_tokens

    @property
    def counted_tokens(self) -> int:
        """What the engine's counter has for it, claimed ones included."""
        return self.embedded_tokens + self._beyond

    @property
    def doubted_tokens(self) -> int:
        """Of these, what is not billed until somebody has looked."""
        return self._doubted + self._beyond

    @property
    def nothing_delivered(self) -> bool:
        """True when no caller was given a vector."""
        return not self.delivered

    def quantities(self) -> list[usage.Quantity]:
        """The leaves, disjoint, none of them empty."""
        sure = self.embedded_tokens - self._doubted
        leaves = []
        if sure:
            leaves.append(
                usage.Quantity(
                    unit=usage.UNIT_TOKEN,
                    direction=usage.DIRECTION_IN,
                    modality=usage.MODALITY_TEXT,
                    cache_use=usage.CACHE_USE_NONE,
                    token_kind=usage.TOKEN_KIND_EMBEDDING,
                    amount=sure,
                    undelivered_amount=0 if self.delivered else sure,
                )
            )
        if self.doubted_tokens:
            leaves.append(
                usage.Quantity(unit=usage.UNIT_DISPUTED_TOKEN, amount=self.doubted_tokens)
            )
        return leaves

    def output_digest(self) -> bytes:
        """Empty: no id was generated."""
        return b""
