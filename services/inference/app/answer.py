"""The answer of one request as it comes: pieces of each choice, durable, and handed over."""

from __future__ import annotations

from typing import NamedTuple

from inference import engine as port
from inference.domain import records
from inference.domain.counting import Tally
from tollbook.inference.v1 import inference_pb2 as inference


class _Chunk(NamedTuple):
    """What came from the engine in one piece; `end` is the choice's count with it."""

    end: int
    text: str


class Answer:
    """`tally` counts it. Of each choice so many chunks came, of these so many are durable, and of
    these so many were handed over to a caller.
    """

    def __init__(self, prompt_tokens: int, choices: int) -> None:
        self.tally = Tally(prompt_tokens, choices)
        self._chunks: list[list[_Chunk]] = [[] for _ in range(choices)]
        self._durable = [0] * choices
        self._delivered = [0] * choices
        self._closed = False

    @property
    def choices(self) -> int:
        """Number of choices."""
        return len(self._chunks)

    def take(self, event: port.Tokens) -> tuple[int, int]:
        """Count a piece and keep it; gives the choice's tokens and chunks with it."""
        total = self.tally.add(event.choice, event.token_ids)
        self.tally.note_cached(event.choice, event.cached_tokens)
        chunks = self._chunks[event.choice]
        chunks.append(_Chunk(total, event.text))
        return total, len(chunks)

    def became_durable(self, choice: int, chunks: int) -> None:
        """A choice's first `chunks` chunks are recorded."""
        self._durable[choice] = chunks

    def durable_chunks(self, choice: int) -> int:
        """How many chunks of a choice are recorded."""
        return self._durable[choice]

    def given_chunks(self, choice: int) -> int:
        """How many chunks of a choice may be given away: once it is closed no more than were
        handed over, also to a caller that comes at that instant.
        """
        return self._delivered[choice] if self._closed else self._durable[choice]

    def piece(self, choice: int, cursor: int) -> inference.Delta | None:
        """Everything that may be given of a choice after `cursor` chunks, in one Delta."""
        end = self.given_chunks(choice)
        if cursor >= end:
            return None
        chunks = self._chunks[choice]
        begin = chunks[cursor - 1].end if cursor else 0
        total = chunks[end - 1].end
        return inference.Delta(
            choice=choice,
            text="".join(chunk.text for chunk in chunks[cursor:end]),
            token_ids=self.tally.choices[choice].token_ids[begin:total],
            cumulative_tokens=total,
        )

    def finished(self, choice: int) -> inference.Finished | None:
        """How a choice ended, when it did and everything of it is durable."""
        reason = self.tally.choices[choice].finish_reason
        if not reason or self._durable[choice] < len(self._chunks[choice]):
            return None
        return inference.Finished(
            choice=choice,
            finish_reason=reason,  # type: ignore[arg-type]
            output_tokens=len(self.tally.choices[choice].token_ids),
        )

    def hand_over(self, choice: int, chunks: int) -> bool:
        """A caller has this choice's first `chunks` chunks; whether that is news, and counts. Too
        late once it is closed.
        """
        if self._closed or chunks <= self._delivered[choice]:
            return False
        self._delivered[choice] = chunks
        self.tally.hand_over(choice, self._chunks[choice][chunks - 1].end)
        return True

    @property
    def is_handed_over(self) -> bool:
        """Whether a caller has all that came."""
        return all(
            delivered == len(chunks)
            for delivered, chunks in zip(self._delivered, self._chunks, strict=True)
        )

    def close(self) -> None:
        """Nothing is handed over from now on: it is being settled."""
        self._closed = True

    def results(self) -> tuple[records.ChoiceResult, ...]:
        """What whoever asks again will get: what was handed over, for more is not paid."""
        return tuple(
            records.ChoiceResult(
                tally.token_ids[: tally.delivered_tokens],
                "".join(chunk.text for chunk in chunks[:delivered]),
                tally.finish_reason,
            )
            for tally, chunks, delivered in zip(
                self.tally.choices, self._chunks, self._delivered, strict=True
            )
        )
