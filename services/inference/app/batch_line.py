"""One line of a batch through the gate: to its answer, or to why there is none.

The same registry, hold, count and queue as any request's, in the tier `batch`. A line that the
service itself failed on is run again under an id of its own; nothing of the failed run is
charged, for nothing of it was delivered (domain/event.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from inference.app.embedding import EmbeddingReader
from inference.app.order import Caller
from inference.app.reader import Reader
from inference.app.requests import Requests, answer_of, embedded_of
from inference.domain import batches
from inference.domain.event import BATCH_TIER
from inference.domain.outcome import End
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

_ANSWERED = frozenset({usage.OUTCOME_COMPLETE, usage.OUTCOME_EMPTY, usage.OUTCOME_SAFETY_STOP})


Spec = inference.GenerationSpec | inference.EmbedRequest
Whole_co = TypeVar("Whole_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Answered:
    """The whole answer; of an embedding it has no choices."""

    request_id: str
    choices: tuple[inference.Choice, ...]
    summary: inference.UsageSummary
    embedded: inference.EmbedResponse | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """No answer, and none to come."""

    request_id: str
    error: errors.TollbookError
    summary: inference.UsageSummary | None


async def run(
    requests: Requests,
    caller: Caller,
    spec_under: Callable[[str], Awaitable[Spec]],
    batch_id: str,
    custom_id: str,
) -> Answered | Refused:
    """Run a line, or find what became of it. Errors: Unavailable when it is to be tried later."""
    attempt = 1
    while True:
        request_id = batches.request_id_of(batch_id, custom_id, attempt)
        try:
            found = await _ask(requests, caller, await spec_under(request_id))
        except errors.Unavailable:
            raise
        except errors.TollbookError as error:
            return Refused(request_id, error, None)
        if isinstance(found, Answered) or attempt == batches.MAX_ATTEMPTS:
            return found
        attempt += 1


async def _ask(requests: Requests, caller: Caller, spec: Spec) -> Answered | Refused:
    """One attempt; Refused is one that is settled and was no answer.

    Errors: what refuses it before it runs.
    """
    if isinstance(spec, inference.EmbedRequest):
        return await _ask_for_vectors(requests, caller, spec)
    found = requests.find(caller, spec, BATCH_TIER)
    if not isinstance(found, Reader):
        answer = answer_of(found)
        return _judged(answer.request_id, answer.choices, answer.summary, answer.failure)
    whole = await _read(found, spec.request_id)
    if isinstance(whole, Refused):
        return whole
    return _judged(whole.request_id, tuple(whole.choices), whole.usage, None)


async def _ask_for_vectors(
    requests: Requests, caller: Caller, spec: inference.EmbedRequest
) -> Answered | Refused:
    found = requests.embed(caller, spec, BATCH_TIER)
    if isinstance(found, EmbeddingReader):
        whole = await _read(found, spec.request_id)
        if isinstance(whole, Refused):
            return whole
        failure = None
    else:
        whole, failure = embedded_of(found)
    judged = _judged(whole.request_id, (), whole.usage, failure)
    return judged if isinstance(judged, Refused) else replace(judged, embedded=whole)


class _Reads(Protocol[Whole_co]):
    @property
    def summary(self) -> inference.UsageSummary | None: ...

    def leave(self, why: End) -> None: ...

    async def whole(self) -> Whole_co: ...


async def _read(found: _Reads[Whole_co], request_id: str) -> Whole_co | Refused:
    reading = asyncio.ensure_future(found.whole())
    try:
        # Shielded: who cancels this task is not a caller that left.
        return await asyncio.shield(reading)
    except errors.TollbookError as error:
        # What the process is lost with, or stops with, is no word on this line: the next finds
        # it settled, and goes on from there.
        if found.summary is None or isinstance(error, errors.Unavailable):
            raise
        return Refused(request_id, error, found.summary)
    finally:
        if reading.done():
            found.leave(End.CALLER_LEFT)


def _judged(
    request_id: str,
    choices: tuple[inference.Choice, ...],
    summary: inference.UsageSummary,
    failure: errors.TollbookError | None,
) -> Answered | Refused:
    if failure is None and summary.outcome in _ANSWERED:
        return Answered(request_id, choices, summary)
    said = failure or errors.Internal(
        "this line's run was cut off before its answer was taken", reason="SETTLED_WITH_ERROR"
    )
    return Refused(request_id, said, summary)
