"""Counting one logical request: from what the engine hands out to disjoint leaves.

Owns the rules of what is one token of what. A choice's output is the sum of the
ids handed out, and nothing else: not lengths of texts, not the engine's summary.
The prompt counts once, however many choices read it. Of its tokens those that
were found in the cache stand in a leaf of their own, by the figure of the choice
that was scheduled first: its siblings find the blocks that it wrote itself.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from inference.domain.claims import NO_DOUBT, Doubt
from tollbook.usage.v1 import usage_pb2 as usage

UNKNOWN: Final = -1
"""A figure that the engine has not given yet."""

# 4 bytes a token, also where a machine's C int is wider.
_ID_CODE = next(code for code in "ILH" if array(code).itemsize == 4)


class ChoiceTally:
    """One choice: its ids, how many of them were handed to the caller, and its end."""

    __slots__ = ("delivered_tokens", "finish_reason", "token_ids")

    def __init__(self) -> None:
        self.token_ids = array(_ID_CODE)
        self.delivered_tokens = 0
        self.finish_reason: int = usage.FINISH_REASON_UNSPECIFIED


class Tally:
    """The count of one logical request.

    Raises ValueError for what no engine can have meant: more cached than prompt
    tokens, an id beyond 32 bits, more delivered than generated.
    """

    __slots__ = ("_cached_known", "_doubts", "cached_tokens", "choices", "prompt_tokens")

    def __init__(self, prompt_tokens: int, choices: int) -> None:
        if prompt_tokens < 0 or choices < 1:
            raise ValueError(f"prompt of {prompt_tokens} tokens, {choices} choices")
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self._doubts = [NO_DOUBT] * choices
        self._cached_known = False
        self.choices = tuple(ChoiceTally() for _ in range(choices))

    def add(self, choice: int, token_ids: Sequence[int]) -> int:
        """Count new ids of a choice; gives how many it has now."""
        ids = self.choices[choice].token_ids
        try:
            ids.extend(token_ids)
        except OverflowError as error:
            raise ValueError(f"token id beyond 32 bits in {list(token_ids)!r}") from error
        return len(ids)

    def note_cached(self, choice: int, cached_tokens: int) -> None:
        """Take the cache's figure, from the choice scheduled first and once only.

        UNKNOWN: the engine has not said yet.
        """
        if choice != 0 or self._cached_known or cached_tokens == UNKNOWN:
            return
        if not 0 <= cached_tokens <= self.prompt_tokens:
            raise ValueError(f"{cached_tokens} tokens cached of a prompt of {self.prompt_tokens}")
        self.cached_tokens = cached_tokens
        self._cached_known = True

    def finish(self, choice: int, finish_reason: int) -> None:
        """A choice ended."""
        self.choices[choice].finish_reason = finish_reason

    def doubt(self, choice: int, doubt: Doubt) -> None:
        """Some of a choice is in doubt; the prompt is counted, and doubted, with the first."""
        if not 0 <= doubt.output_tokens <= len(self.choices[choice].token_ids):
            raise ValueError(f"{doubt} of {len(self.choices[choice].token_ids)} tokens")
        if not 0 <= doubt.prompt_tokens <= self.prompt_tokens or doubt.beyond_tokens < 0:
            raise ValueError(f"{doubt} of a prompt of {self.prompt_tokens}")
        self._doubts[choice] = doubt if choice == 0 else replace(doubt, prompt_tokens=0)

    @property
    def doubted_output_tokens(self) -> int:
        """Of the output, what is not billed until somebody has looked."""
        return sum(doubt.output_tokens for doubt in self._doubts)

    def hand_over(self, choice: int, tokens: int) -> None:
        """The caller was given this choice's first `tokens` tokens; never goes back."""
        tally = self.choices[choice]
        if tokens > len(tally.token_ids):
            raise ValueError(f"{tokens} handed over of {len(tally.token_ids)}")
        tally.delivered_tokens = max(tally.delivered_tokens, tokens)

    @property
    def output_tokens(self) -> int:
        """Tokens generated, all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def made_tokens(self) -> int:
        """What the engine made: the same."""
        return self.output_tokens

    @property
    def undelivered_tokens(self) -> int:
        """Of these, not handed over."""
        return self.output_tokens - sum(choice.delivered_tokens for choice in self.choices)

    @property
    def nothing_delivered(self) -> bool:
        """True when no caller was given a token."""
        return not any(choice.delivered_tokens for choice in self.choices)

    def quantities(self) -> list[usage.Quantity]:
        """The leaves, disjoint, none of them empty."""
        cached = self.cached_tokens
        plain = self.prompt_tokens - cached - self._doubts[0].prompt_tokens
        output = self.output_tokens - self.doubted_output_tokens
        undelivered = min(self.undelivered_tokens, output)
        leaves = (
            (usage.DIRECTION_IN, usage.CACHE_USE_NONE, plain, 0),
            (usage.DIRECTION_IN, usage.CACHE_USE_READ, cached, 0),
            (usage.DIRECTION_OUT, usage.CACHE_USE_NONE, output, undelivered),
        )
        counted = [
            usage.Quantity(
                unit=usage.UNIT_TOKEN,
                direction=direction,
                modality=usage.MODALITY_TEXT,
                cache_use=cache_use,
                token_kind=usage.TOKEN_KIND_PLAIN,
                amount=amount,
                undelivered_amount=undelivered,
            )
            for direction, cache_use, amount, undelivered in leaves
            if amount > 0
        ]
        doubted = sum(doubt.total for doubt in self._doubts)
        disputed = usage.Quantity(unit=usage.UNIT_DISPUTED_TOKEN, amount=doubted)
        return [*counted, disputed] if doubted else counted

    def output_digest(self) -> bytes:
        """SHA-256 of all ids, 4 bytes little-endian each; empty when there are none."""
        return output_digest(choice.token_ids for choice in self.choices)


def output_digest(choices: Iterable[Sequence[int]]) -> bytes:
    """Digest of generated ids, choice after choice (UsageEvent.output_digest)."""
    digest = hashlib.sha256()
    empty = True
    for ids in choices:
        if len(ids):
            empty = False
            digest.update(b"".join(number.to_bytes(4, "little") for number in ids))
    return b"" if empty else digest.digest()


def output_tokens_of(quantities: Iterable[usage.Quantity]) -> int:
    """Output tokens in a settled event's leaves."""
    return sum(
        leaf.amount
        for leaf in quantities
        if leaf.unit == usage.UNIT_TOKEN and leaf.direction == usage.DIRECTION_OUT
    )


def metered_tokens_of(quantities: Iterable[usage.Quantity]) -> int:
    """What an engine's counter has of an event: its output tokens, or those that it embedded."""
    return sum(
        leaf.amount
        for leaf in quantities
        if leaf.unit == usage.UNIT_TOKEN
        and (leaf.direction == usage.DIRECTION_OUT or leaf.token_kind == usage.TOKEN_KIND_EMBEDDING)
    )


def input_tokens_of(quantities: Iterable[usage.Quantity]) -> tuple[int, int]:
    """(prompt tokens, of these read from the cache) of an event's leaves."""
    total = cached = 0
    for leaf in quantities:
        if leaf.unit == usage.UNIT_TOKEN and leaf.direction == usage.DIRECTION_IN:
            total += leaf.amount
            if leaf.cache_use == usage.CACHE_USE_READ:
                cached += leaf.amount
    return total, cached
