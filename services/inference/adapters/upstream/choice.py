"""One choice of a job, read from a server's stream: its tokens as they come, then its verdict.

Owns what is counted of one HTTP answer. Knows nothing of jobs, of other choices, or of the
connection's making.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import structlog
from opentelemetry import metrics

from inference import engine as port
from inference.adapters.upstream import shapes, sse
from inference.adapters.upstream.words import Words
from inference.domain import claims
from tollbook.usage.v1 import usage_pb2 as usage

log = structlog.get_logger()

_LOOSE: Final = 4
_CHARACTERS_A_TOKEN: Final = 256
DISPUTED_METRIC: Final = "tollbook.inference.usage.disputed"
UNCLAIMED_METRIC: Final = "tollbook.inference.usage.unclaimed"


class Choice:
    """Reads one answer. What it gave is counted also when the reading ends midway."""

    def __init__(self, job: port.Job, index: int, words: Words) -> None:
        self._job = job
        self._index = index
        self._words = words
        self._ids: list[int] = []
        self._text: list[str] = []
        self._claim: claims.Claim | None = None
        self._told_ids = False
        self._told_text_alone = False
        self._finish_reason = 0
        self._characters = 0
        meter = metrics.get_meter("inference")
        self._disputed = meter.create_counter(
            DISPUTED_METRIC, "{token}", "tokens that an engine claims otherwise than it hands out"
        )
        self._unclaimed = meter.create_counter(
            UNCLAIMED_METRIC, "{request}", "answers whose engine gave no usage"
        )

    async def tokens(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[port.Tokens]:
        """Tokens, to the end of the answer.

        Errors: EngineFailed, for an answer that ends before it is finished, or is no answer.
        """
        try:
            async for data in sse.events(pieces):
                if data == sse.DONE:
                    break
                tokens = self._take(shapes.read_piece(data))
                if tokens is not None:
                    yield tokens
        except (sse.NotAStream, shapes.Garbled) as error:
            raise port.EngineFailed(str(error)) from error
        if not self._finish_reason:
            raise port.EngineFailed("the server's answer ended before it was finished")
        if (last := self._end_of_text()) is not None:
            yield last

    def _take(self, piece: shapes.Piece) -> port.Tokens | None:
        if piece.claim is not None:
            self._claim = piece.claim
        if piece.finish_reason:
            self._finish_reason = piece.finish_reason
        if piece.token_ids is None:
            ids = self._words.count(piece.text)
            self._told_text_alone |= bool(ids)
        else:
            ids = list(piece.token_ids)
            self._told_ids |= bool(ids)
        if not ids and not piece.text:
            return None
        self._check_bounds(len(ids), len(piece.text))
        self._ids += ids
        self._text.append(piece.text)
        return port.Tokens(self._index, ids, piece.text, port.UNKNOWN)

    def _check_bounds(self, tokens: int, characters: int) -> None:
        """Nothing beyond what was asked for is taken in: room was kept for no more.

        Errors: EngineFailed.
        """
        most = self._job.max_tokens
        # Broken characters are more tokens to us than to the server that cut them.
        count_of_most = most if self._told_ids else most * _LOOSE + _LOOSE
        self._characters += characters
        if (
            len(self._ids) + tokens > count_of_most
            or self._characters > (most + 1) * _CHARACTERS_A_TOKEN
        ):
            raise port.EngineFailed(f"the server gave more than the {most} tokens asked for")

    def _end_of_text(self) -> port.Tokens | None:
        """The one token that a server who tells text alone cannot show, where it claims it."""
        claim, end = self._claim, self._words.end_of_text_id
        if (
            self._told_text_alone
            and not self._told_ids
            and end is not None
            and claim is not None
            and self._finish_reason == usage.FINISH_REASON_STOP
            and claim.output_tokens == len(self._ids) + 1
        ):
            self._ids.append(end)
            return port.Tokens(self._index, (end,), "", port.UNKNOWN)
        return None

    def finish(self, aborted: bool) -> tuple[port.Tokens | None, port.Finished]:
        """(the cache's figure, the end) of an answer that was read out, or aborted midway."""
        # Cut off midway, the claim that came last may be older than the tokens.
        verdict = claims.judge(
            None if aborted else self._claim,
            len(self._job.prompt.token_ids),
            len(self._ids),
            told_ids=self._told_ids and not self._told_text_alone,
            spoken_agrees=aborted or self._says_the_same(),
        )
        if verdict.reasons:
            self._disputed.add(verdict.doubt.total)
            log.error(
                "an engine's usage is disputed",
                request=self._job.engine_request_id,
                choice=self._index,
                disputed_tokens=verdict.doubt.total,
                reasons=verdict.reasons,
            )
        elif self._claim is None and not aborted:
            self._unclaimed.add(1)
            log.warning("an engine gave no usage", request=self._job.engine_request_id)
        cached = port.Tokens(self._index, (), "", verdict.cached_tokens) if not aborted else None
        reason = usage.FINISH_REASON_ABORT if aborted else self._finish_reason
        return cached, port.Finished(
            self._index,
            reason,
            verdict.surplus_tokens,
            usage.WASTE_KIND_UNPROVEN,
            verdict.doubt,
        )

    def _says_the_same(self) -> bool:
        """True when the text is what the ids say; text alone was counted from itself."""
        if not self._told_ids:
            return True
        if not self._words.knows(self._ids):
            return False
        decoded = self._words.decode(self._job.prompt.token_ids, self._ids)
        return claims.says_the_same(decoded, "".join(self._text), self._job.sampling.stop)
