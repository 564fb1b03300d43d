"""One embedding request, from its first sight to its settlement.

Like a generation (app/generation.py) run by a detached task, held, recorded and settled once.
It is simpler: an answer is all its vectors or none, so there is nothing to be read meanwhile.
Who leaves first has no more inputs begun; what had become vectors by then is counted.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from typing import Final

import structlog
from opentelemetry import trace

from inference import engine as port
from inference.app.admission import Admission
from inference.app.order import REQUEST_BYTES, Order, Phase, World, failure_of
from inference.app.settlement import settled
from inference.domain import records
from inference.domain.embedding import NO_CHOICES, EmbeddingTally
from inference.domain.event import BATCH_TIER, complete, summary_of
from inference.domain.outcome import End
from kernel import errors, telemetry
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

log = structlog.get_logger()

MAX_INPUTS: Final = 2_048
# Of an answer, as it stands in the spool and in a message.
MAX_VECTOR_BYTES: Final = 8 << 20
# Inputs of one request that are in the engine at once: places at the gate.
AT_ONCE: Final = 8
_INPUT_BYTES: Final = 128
_COMPONENT_BYTES: Final = 4
_ID_CODE: Final = next(code for code in "ILH" if array(code).itemsize == _COMPONENT_BYTES)


class Embedding:
    """See the module. `done` is set when it is settled or refused."""

    def __init__(self, world: World, order: Order[inference.EmbedRequest]) -> None:
        self._world = world
        self.order = order
        self.phase = Phase.PREPARING
        self.refusal: errors.TollbookError | None = None
        self.failure: errors.TollbookError | None = None
        self.summary: inference.UsageSummary | None = None
        self.vectors: list[bytes] = []
        self.done = asyncio.Event()
        self._tally: EmbeddingTally | None = None
        self._admission = Admission(world.gate, world.spool, world.credit)
        self._accepted_us = world.clock.now_us()
        self._first_us = 0
        self._serial = -1
        self._readers: set[EmbeddingReader] = set()
        self._stop: End | None = None
        self._aborting: asyncio.Task[None] | None = None
        self._span = world.tracer.start_span(
            f"embeddings {order.spec.model}",
            attributes={
                telemetry.GEN_AI_OPERATION_NAME: "embeddings",
                telemetry.GEN_AI_PROVIDER_NAME: "vllm",
                telemetry.GEN_AI_REQUEST_MODEL: order.spec.model,
                telemetry.ACCOUNT: order.caller.account_id,
                telemetry.REQUEST: order.request_id,
            },
        )

    @property
    def counted_tokens(self) -> int:
        """Tokens that the engine counted and that are not settled."""
        live = self.phase in (Phase.PREPARING, Phase.RUNNING, Phase.ENDED)
        return self._tally.counted_tokens if live and self._tally is not None else 0

    @property
    def readers(self) -> int:
        """Callers that wait."""
        return len(self._readers)

    def reader(self) -> EmbeddingReader:
        """A caller more."""
        reader = EmbeddingReader(self, attached=bool(self._readers))
        self._readers.add(reader)
        return reader

    def leave(self, reader: EmbeddingReader, why: End) -> None:
        """A caller goes. When it was the last, no more inputs are begun."""
        self._readers.discard(reader)
        if not self._readers and self.phase in (Phase.PREPARING, Phase.RUNNING):
            self.stop(why)

    def stop(self, why: End) -> None:
        """Have it end now."""
        if self._stop is not None or self.phase not in (Phase.PREPARING, Phase.RUNNING):
            return
        self._stop = why
        if self.phase is Phase.PREPARING:
            self._admission.stop()
        else:
            self._aborting = asyncio.create_task(
                self._world.engine.abort(self._engine_request_id()), name="abort"
            )

    async def run(self) -> None:
        """Run it to its settlement. Never raises but when the spool does."""
        try:
            try:
                job = await self._prepare()
            except errors.TollbookError as error:
                self._refuse(error)
                return
            tally = self._begin(job)
            try:
                end = await self._embed(job, tally)
            except errors.TollbookError as error:
                self._world.spool.append(records.Withdrawn(self._serial))
                self._refuse(error)
                return
            self._admission.leave_gate()
            # Whoever waits for the answer has it with the settlement; before that, nobody.
            tally.delivered = end is End.ENGINE_FINISHED and bool(self._readers)
            if end is End.ENGINE_FINISHED and not tally.delivered:
                end = self._stop or End.CALLER_LEFT
            self.failure = failure_of(end)
            await self._settle(tally, end)
        finally:
            self._admission.close()
            self._span.end()
            self.done.set()

    async def _prepare(self) -> port.EmbedJob:
        inputs = await self._inputs()
        size = self._vector_size(len(inputs))
        tokens = sum(map(len, inputs))
        places = min(len(inputs), AT_ONCE)
        await self._admission.turn(
            self.order.caller.account_id,
            places,
            tokens,
            yields=self.order.service_tier == BATCH_TIER,
        )
        await self._admission.hold(
            REQUEST_BYTES + len(inputs) * _INPUT_BYTES + size,
            self.order.cost(tokens, 0, self._accepted_us),
        )
        self._serial = self._world.spool.journal.next_serial
        return port.EmbedJob(
            engine_request_id=self._engine_request_id(),
            target=self.order.target,
            inputs=inputs,
            dimensions=self.order.spec.dimensions,
            at_once=places,
            trace_headers=telemetry.carrier_of(trace.set_span_in_context(self._span)),
        )

    async def _inputs(self) -> list[list[int]]:
        spec = self.order.spec
        if bool(spec.inputs) == bool(spec.texts):
            raise errors.InvalidArgument.of_field(
                "inputs", "either inputs or texts, and at least one of them"
            )
        name = "texts" if spec.texts else "inputs"
        inputs = []
        for number, text in enumerate(spec.texts):
            inputs.append(await self._world.engine.encode(text))
            self._check(f"texts[{number}]", inputs[-1])
        for number, given in enumerate(spec.inputs):
            inputs.append(list(given.token_ids))
            self._check(f"inputs[{number}]", inputs[-1])
        if len(inputs) > MAX_INPUTS:
            raise errors.InvalidArgument.of_field(
                name, f"{len(inputs)} inputs; a request has at most {MAX_INPUTS}"
            )
        return inputs

    def _check(self, field: str, ids: list[int]) -> None:
        context = self._world.engine.capabilities().context_tokens
        problem = "" if ids else "the input has no token"
        if len(ids) > context:
            problem = f"the input has {len(ids)} tokens; the model takes at most {context}"
        if problem:
            raise errors.InvalidArgument(
                f"{field}: {problem}",
                reason="INVALID_PROMPT",
                violations=(errors.FieldViolation(field, problem),),
            )
        self._world.engine.check_ids(ids, field)

    def _vector_size(self, inputs: int) -> int:
        """Bytes of the answer at the most. Errors: InvalidArgument."""
        engine, dimensions = self._world.engine, self.order.spec.dimensions
        if dimensions:
            engine.check_dimensions(dimensions)
        each = min(dimensions or 1 << 30, engine.capabilities().vector_size) * _COMPONENT_BYTES
        if inputs * each > MAX_VECTOR_BYTES:
            problem = (
                f"{inputs} vectors of {each} bytes; an answer has at most {MAX_VECTOR_BYTES}"
                f" bytes: send {MAX_VECTOR_BYTES // each} inputs at once"
            )
            raise errors.InvalidArgument.of_field("inputs", problem)
        return inputs * each

    def _engine_request_id(self) -> str:
        return f"{self.order.request_id}:{self._serial}"

    def _template(self) -> usage.UsageEvent:
        return self.order.template(
            self._admission.hold_id, self._world.engine_id, self._accepted_us
        )

    def _begin(self, job: port.EmbedJob) -> EmbeddingTally:
        tally = self._tally = EmbeddingTally(sum(map(len, job.inputs)))
        self._world.spool.append(
            self.order.started(
                self._serial,
                self._template(),
                telemetry.ids_of(self._span),
                tally.prompt_tokens,
                NO_CHOICES,
            )
        )
        self.phase = Phase.RUNNING
        return tally

    async def _embed(self, job: port.EmbedJob, tally: EmbeddingTally) -> End:
        world = self._world
        found: dict[int, bytes] = {}
        try:
            async for some in world.engine.embed(job):
                tally.add(some.tokens, some.doubt)
                now_us = world.clock.now_us()
                self._first_us = self._first_us or now_us
                world.spool.append(records.Embedded(self._serial, some.tokens, now_us))
                found |= {some.first + place: value for place, value in enumerate(some.values)}
        except errors.TollbookError as error:
            if not found:
                raise
            return self._failed(error)
        except port.EngineFailed as error:
            return self._failed(error)
        except port.EngineLost:
            return End.ENGINE_LOST
        if len(found) < len(job.inputs):
            if self._stop is None:
                return self._failed(port.EngineFailed("fewer vectors than inputs"))
            return self._stop
        self.vectors = [found[place] for place in range(len(job.inputs))]
        return self._stop or End.ENGINE_FINISHED

    def _failed(self, error: Exception) -> End:
        log.error("the engine failed on a request", request=self.order.request_id, error=str(error))
        self._span.record_exception(error)
        return End.ENGINE_FAILED

    async def _settle(self, tally: EmbeddingTally, end: End) -> None:
        world, order = self._world, self.order
        event = complete(self._template(), tally, end, self._first_us, world.clock.now_us())
        record = settled(
            world.streams,
            self._serial,
            event,
            order.body_digest,
            telemetry.ids_of(self._span),
            results_of(self.vectors) if tally.delivered else (),
        )
        # From here on its tokens are settled and no longer in flight, in one step.
        self.phase = Phase.SETTLING
        world.books.discard(usage.WASTE_KIND_UNPROVEN, tally.doubted_tokens)
        world.spool.append(record)
        self._span.set_attributes(
            {
                telemetry.GEN_AI_RESPONSE_ID: event.event_id,
                telemetry.GEN_AI_RESPONSE_MODEL: event.served_model,
                telemetry.GEN_AI_USAGE_INPUT_TOKENS: tally.embedded_tokens,
            }
        )
        await world.spool.durable()
        self._admission.settled()
        self.summary = summary_of(event, record.log)
        self.phase = Phase.SETTLED

    def _refuse(self, error: errors.TollbookError) -> None:
        self._admission.refused(self.order.caller.account_id)
        self.refusal = error
        self.phase = Phase.REFUSED


class EmbeddingReader:
    """One caller that waits for the answer."""

    def __init__(self, embedding: Embedding, attached: bool) -> None:
        self._embedding = embedding
        self._attached = attached

    @property
    def summary(self) -> inference.UsageSummary | None:
        """What will be charged; None while it is not settled, or when it was refused."""
        return self._embedding.summary

    def leave(self, why: End) -> None:
        """The caller is gone, or has everything."""
        self._embedding.leave(self, why)

    async def whole(self) -> inference.EmbedResponse:
        """The answer. Errors: the refusal or the failure, and Unavailable when it was ended
        before this caller came to it.
        """
        embedding = self._embedding
        await embedding.done.wait()
        error = embedding.refusal or embedding.failure
        if error is not None:
            raise error
        if embedding.summary is None or embedding.summary.outcome != usage.OUTCOME_COMPLETE:
            raise ended_unread()
        return answer_of_vectors(
            embedding.order.request_id, embedding.vectors, embedding.summary, self._attached
        )


def ended_unread() -> errors.TollbookError:
    """Why there is no answer to a request that nobody waited for."""
    return errors.Internal(
        "this request was ended because its callers had left, and is settled; send a new one"
        " under a new id",
        reason="SETTLED_WITH_ERROR",
    )


def results_of(vectors: Sequence[bytes]) -> tuple[records.ChoiceResult, ...]:
    """Vectors as the spool keeps them."""
    return tuple(records.ChoiceResult(array(_ID_CODE, vector), "", 0) for vector in vectors)


def vectors_of(results: Sequence[records.ChoiceResult]) -> list[bytes]:
    """The reverse of results_of."""
    return [array(_ID_CODE, result.token_ids).tobytes() for result in results]


def answer_of_vectors(
    request_id: str,
    vectors: Sequence[bytes],
    summary: inference.UsageSummary,
    replayed: bool,
) -> inference.EmbedResponse:
    """The answer to a caller."""
    embeddings = [inference.Embedding(values=array("f", vector)) for vector in vectors]
    return inference.EmbedResponse(
        request_id=request_id, embeddings=embeddings, usage=summary, replayed=replayed
    )
