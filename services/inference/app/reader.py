"""One caller's view of a generation, as a stream or whole: what is durable, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol, TypeVar

from inference.app.order import Phase
from inference.domain.outcome import End
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference

if TYPE_CHECKING:
    from inference.app.generation import Generation


Answer_co = TypeVar("Answer_co", covariant=True)


class Whole(Protocol[Answer_co]):
    """A caller that wants its answer at once, of text or of vectors."""

    @property
    def summary(self) -> inference.UsageSummary | None:
        """What will be charged; None while it is not settled, or when it was refused."""

    def leave(self, why: End) -> None:
        """The caller is gone, or has everything."""

    async def whole(self) -> Answer_co:
        """The answer. Errors: the refusal or the failure."""


class Reader:
    """One caller's view of a generation: a cursor for each choice, and nothing else held.

    What became durable while the caller was busy comes as one Delta.
    """

    def __init__(self, generation: Generation, attached: bool) -> None:
        self._generation = generation
        self._attached = attached
        self._event = asyncio.Event()
        self._whole = False
        self._left = False
        # False for a caller that waits for the settlement alone.
        self.takes = True

    def wake(self) -> None:
        """It is further than it was, or over."""
        self._event.set()

    def more(self) -> None:
        """There is more to read: of no interest to a caller that wants all at once."""
        if not self._whole:
            self._event.set()

    def leave(self, why: End) -> None:
        """The caller is gone, or has everything. The first call counts."""
        if not self._left:
            self._left = True
            self._generation.leave(self, why)

    @property
    def summary(self) -> inference.UsageSummary | None:
        """What will be charged; None while it is not settled, or when it was refused."""
        return self._generation.summary

    async def stream(self) -> AsyncIterator[inference.GenerateResponse]:
        """Messages for the caller; what was yielded is handed over when it asks for more.

        Errors: the refusal or the failure.
        """
        generation = self._generation
        await self._admitted()
        yield inference.GenerateResponse(started=self._started())
        answer = generation.answer
        cursors = [0] * answer.choices
        told: set[int] = set()
        while True:
            self._event.clear()
            # Read before the pieces: what is durable at the end is then seen by them.
            settled = generation.phase is Phase.SETTLED
            self._check_refusal()
            for choice in range(answer.choices):
                end = answer.given_chunks(choice)
                delta = None if settled else answer.piece(choice, cursors[choice])
                if delta is not None:
                    # Without tokens or text there is nothing to tell.
                    if delta.token_ids or delta.text:
                        yield inference.GenerateResponse(delta=delta)
                    cursors[choice] = end
                    generation.hand_over(choice, end)
                finished = answer.finished(choice)
                if (
                    finished is not None
                    and choice not in told
                    and cursors[choice] == answer.durable_chunks(choice)
                ):
                    told.add(choice)
                    yield inference.GenerateResponse(finished=finished)
            if settled:
                break
            if generation.phase is not Phase.SETTLED:
                await self._event.wait()
        self._check_whole(cursors)
        if generation.failure is not None:
            raise generation.failure
        yield inference.GenerateResponse(usage=generation.summary)

    async def whole(self) -> inference.GenerateOnceResponse:
        """The whole answer at once; it counts as handed over when it is complete.

        Errors: the refusal or the failure.
        """
        generation = self._generation
        self._whole = True
        await self._admitted()
        while generation.phase is Phase.RUNNING:
            self._event.clear()
            await self._event.wait()
        self._check_refusal()
        if generation.failure is not None:
            # A failed call carries no answer: nothing is handed over.
            self.takes = False
            generation.waive()
            await self._settled()
            raise generation.failure
        choices = []
        answer = generation.answer
        ends = [answer.given_chunks(choice) for choice in range(answer.choices)]
        for choice, end in enumerate(ends):
            delta = answer.piece(choice, 0) or inference.Delta()
            finished = answer.finished(choice) or inference.Finished()
            choices.append(
                inference.Choice(
                    index=choice,
                    text=delta.text,
                    token_ids=delta.token_ids,
                    finish_reason=finished.finish_reason,
                )
            )
            generation.hand_over(choice, end)
        await self._settled()
        self._check_whole(ends)
        if generation.failure is not None:
            raise generation.failure
        return inference.GenerateOnceResponse(
            request_id=generation.order.request_id,
            choices=choices,
            usage=generation.summary,
            replayed=self._attached,
        )

    async def _settled(self) -> None:
        while self._generation.phase is not Phase.SETTLED:
            self._event.clear()
            await self._event.wait()

    async def _admitted(self) -> None:
        generation = self._generation
        while generation.phase is Phase.PREPARING:
            self._event.clear()
            await self._event.wait()
        self._check_refusal()

    def _check_refusal(self) -> None:
        """Refused it never is settled: nobody may wait for that. Also the engine can refuse."""
        if self._generation.refusal is not None:
            raise self._generation.refusal

    def _started(self) -> inference.Started:
        return inference.Started(
            request_id=self._generation.order.request_id,
            prompt_tokens=self._generation.prompt_tokens,
            replayed=self._attached,
        )

    def _check_whole(self, cursors: list[int]) -> None:
        """A caller that was cut off must not believe that it has the whole answer."""
        generation = self._generation
        recorded = generation.answer.durable_chunks
        if not any(cursor < recorded(choice) for choice, cursor in enumerate(cursors)):
            return
        if generation.was_left:
            # It had been stopped for others who left, before this caller came to it.
            raise errors.Unavailable(
                "this request was being ended because its callers had left; ask again under the"
                " same id for what they were given, or under a new id for an answer",
                reason="ENDING",
                retry_after_ms=1_000,
            )
        raise errors.Unavailable(
            "the answer was not read in time; ask again under the same id for what was read",
            reason="SLOW_READER",
            retry_after_ms=1_000,
        )
