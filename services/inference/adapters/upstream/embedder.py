"""Vectors from an OpenAI-compatible server, and what is believed of its usage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

import httpx
import structlog
from opentelemetry import metrics

from inference import engine as port
from inference.adapters.upstream import vectors
from inference.adapters.upstream.choice import DISPUTED_METRIC, UNCLAIMED_METRIC
from inference.adapters.upstream.refusals import refusal_of
from inference.adapters.upstream.shapes import Garbled
from inference.domain import claims
from kernel import errors

log = structlog.get_logger()

_FIRST_SIZE: Final = 65_536


class Embedder:
    """Asks one server; `failure_of` says what an error of the connection means."""

    def __init__(self, failure_of: Callable[[Exception], Exception]) -> None:
        self._failure_of = failure_of
        self.counted_tokens = 0
        self.vector_size = 0
        meter = metrics.get_meter("inference")
        self._disputed = meter.create_counter(DISPUTED_METRIC, "{token}")
        self._unclaimed = meter.create_counter(UNCLAIMED_METRIC, "{request}")

    async def embed(
        self, http: httpx.AsyncClient, model: str, job: port.EmbedJob, stopped: Callable[[], bool]
    ) -> AsyncIterator[port.Vectors]:
        """See engine.Engine.embed. Errors besides: Unavailable, before the first Vectors."""
        for first in range(0, len(job.inputs), vectors.PIECE):
            if stopped():
                return
            try:
                yield await self._piece(http, model, job, first)
            except Exception as error:
                failure = self._failure_of(error)
                if not first and isinstance(failure, port.EngineLost):
                    # Nothing of it was given to anybody: it may be sent again.
                    raise errors.Unavailable(
                        f"the engine does not answer: {failure}",
                        reason="ENGINE_AWAY",
                        retry_after_ms=2_000,
                    ) from error
                raise failure from error

    async def _piece(
        self, http: httpx.AsyncClient, model: str, job: port.EmbedJob, first: int
    ) -> port.Vectors:
        inputs = job.inputs[first : first + vectors.PIECE]
        most = job.dimensions or self.vector_size or _FIRST_SIZE
        data = await self._answer(
            http,
            vectors.body_of(model, inputs, job.dimensions),
            dict(job.trace_headers),
            vectors.most_bytes(len(inputs), most),
        )
        try:
            found, claim = vectors.read(data, len(inputs), most)
        except Garbled as error:
            raise port.EngineFailed(str(error)) from error
        tokens = sum(map(len, inputs))
        verdict = claims.judge(claim, tokens, 0, told_ids=True, spoken_agrees=True)
        if verdict.reasons:
            self._disputed.add(verdict.doubt.total)
            log.error(
                "an engine's usage is disputed",
                request=job.engine_request_id,
                disputed_tokens=verdict.doubt.total,
                reasons=verdict.reasons,
            )
        elif claim is None:
            self._unclaimed.add(1)
            log.warning("an engine gave no usage", request=job.engine_request_id)
        # In one step with the caller's taking it: nothing is awaited in between.
        self.counted_tokens += tokens + verdict.doubt.beyond_tokens
        return port.Vectors(first, found, tokens, verdict.doubt)

    async def _answer(
        self, http: httpx.AsyncClient, body: dict[str, object], headers: dict[str, str], most: int
    ) -> bytes:
        async with http.stream("POST", "/v1/embeddings", json=body, headers=headers) as answer:
            if answer.status_code != httpx.codes.OK:
                raise await refusal_of(answer)
            data = bytearray()
            async for piece in answer.aiter_bytes():
                data += piece
                if len(data) > most:
                    raise port.EngineFailed(f"an answer of more than {most} bytes")
            return bytes(data)
