"""One logical request, from its first sight to its settlement.

A detached task runs it, whoever listens: it takes every token from the engine
at once, counts it, and has it recorded. Callers read from the record, and only
what is durable: a caller that goes away, or reads slowly, changes neither the
count nor the memory held. When the engine is done and the callers have what
they will get, the request is settled, by one event, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

import structlog
from opentelemetry import trace

from inference import engine as port
from inference.adapters.spool import Spool
from inference.app.admission import Admission
from inference.app.books import Books
from inference.app.credit import Credit, Request
from inference.app.gate import Gate
from inference.app.streams import Streams
from inference.domain import records
from inference.domain.counting import Tally, metered_tokens_of
from inference.domain.event import BATCH_TIER, complete, summary_of
from inference.domain.outcome import End
from kernel import errors, telemetry
from kernel.clock import Clock, timestamp_of
from kernel.placement import usage_log
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

log = structlog.get_logger()

# How long a caller may take to read what the engine has finished, before it is cut off.
HAND_OVER_MS: Final = 30_000
# The spool's worst for a request, and for a token: a progress frame of its own, and its
# place in the result.
REQUEST_BYTES: Final = 4_096
TOKEN_BYTES: Final = 128


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks and who pays."""

    account_id: str
    project_id: str
    key_id: str


@dataclass(frozen=True, slots=True)
class World:
    """What a generation works with."""

    engine: port.Engine
    engine_id: str
    spool: Spool
    streams: Streams
    books: Books
    credit: Credit
    gate: Gate
    clock: Clock
    tracer: trace.Tracer


Spec = TypeVar("Spec")


@dataclass(frozen=True)
class Order(Generic[Spec]):
    """What is asked for: whose, what, of which model; `service_tier` is the event's."""

    caller: Caller
    request_id: str
    spec: Spec
    body_digest: bytes
    target: port.Target
    provenance: usage.Provenance
    cache_salt: str
    service_tier: str = ""

    def cost(self, input_tokens: int, max_output_tokens: int, accepted_us: int) -> Request:
        """What it may cost at the most."""
        return Request(
            account_id=self.caller.account_id,
            project_id=self.caller.project_id,
            key_id=self.caller.key_id,
            event_id=self.request_id,
            served_model=self.target.served_name,
            base_model=self.target.base_name,
            adapter=self.target.adapter,
            service_tier=self.service_tier,
            input_tokens=input_tokens,
            max_output_tokens=max_output_tokens,
            event_time_us=accepted_us,
        )

    def template(self, hold_id: str, engine_id: str, accepted_us: int) -> usage.UsageEvent:
        """Its event, as far as it is known before it runs."""
        return usage.UsageEvent(
            event_id=self.request_id,
            account_id=self.caller.account_id,
            project_id=self.caller.project_id,
            key_id=self.caller.key_id,
            hold_id=hold_id,
            served_model=self.target.served_name,
            base_model=self.target.base_name,
            adapter=self.target.adapter,
            provenance=self.provenance,
            service_tier=self.service_tier,
            event_time=timestamp_of(accepted_us),
            engine_id=engine_id,
        )


class Phase(Enum):
    """How far a generation is."""

    PREPARING = 1
    RUNNING = 2
    ENDED = 3
    SETTLING = 4
    SETTLED = 5
    REFUSED = 6


class _Chunk(NamedTuple):
    """What came from the engine in one piece; `end` is the choice's count with it."""

    end: int
    text: str


class Generation:
    """See the module. `done` is set when it is settled or refused."""

    def __init__(self, world: World, order: Order[inference.GenerationSpec]) -> None:
        self._world = world
        self.order = order
        self.phase = Phase.PREPARING
        self.refusal: errors.TollbookError | None = None
        self.failure: errors.TollbookError | None = None
        self.summary: inference.UsageSummary | None = None
        # True once nobody listened and it was told to end.
        self.was_left = False
        self.prompt_tokens = 0
        self.tally = Tally(0, 1)
        self.done = asyncio.Event()
        self._accepted_us = world.clock.now_us()
        self._first_token_us = 0
        self._serial = -1
        self._admission = Admission(world.gate, world.spool, world.credit)
        self._chunks: list[list[_Chunk]] = []
        self._durable: list[int] = []
        self._delivered: list[int] = []
        self._readers: set[Reader] = set()
        self._changed = asyncio.Event()
        self._stop: End | None = None
        self._in_engine = False
        self._aborting: asyncio.Task[None] | None = None
        self._span = world.tracer.start_span(
            f"chat {order.spec.model}",
            attributes={
                telemetry.GEN_AI_OPERATION_NAME: "chat",
                telemetry.GEN_AI_PROVIDER_NAME: "vllm",
                telemetry.GEN_AI_REQUEST_MODEL: order.spec.model,
                telemetry.ACCOUNT: order.caller.account_id,
                telemetry.REQUEST: order.request_id,
            },
        )

    # What readers see

    @property
    def choices(self) -> int:
        """Number of choices."""
        return len(self._chunks)

    @property
    def counted_tokens(self) -> int:
        """Tokens taken from the engine and not settled."""
        live = self.phase in (Phase.PREPARING, Phase.RUNNING, Phase.ENDED)
        return self.tally.output_tokens if live else 0

    @property
    def readers(self) -> int:
        """Callers that listen."""
        return len(self._readers)

    def reader(self) -> Reader:
        """A new reader, from the beginning."""
        reader = Reader(self, attached=bool(self._readers) or self.phase is not Phase.PREPARING)
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader, why: End) -> None:
        """A reader goes. When it was the last, nobody waits for the engine."""
        self._readers.discard(reader)
        if not self._readers and self.phase in (Phase.PREPARING, Phase.RUNNING, Phase.ENDED):
            self.was_left = True
            self.stop(why)
        self._changed.set()

    def stop(self, why: End) -> None:
        """Have the engine end it now."""
        if self._stop is not None or self.phase in (Phase.SETTLING, Phase.SETTLED, Phase.REFUSED):
            return
        self._stop = why
        if self.phase is Phase.PREPARING:
            self._admission.stop()
        if self._in_engine and self.phase is Phase.RUNNING:
            self._abort()

    def _abort(self) -> None:
        if self._aborting is None:
            self._aborting = asyncio.create_task(
                self._world.engine.abort(self._engine_request_id()), name="abort"
            )

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

    def durable_chunks(self, choice: int) -> int:
        """How many chunks of a choice are recorded."""
        return self._durable[choice]

    def given_chunks(self, choice: int) -> int:
        """How many chunks of a choice may be given away: from the settlement on no more than
        stand in it as handed over, also to a caller that comes at that instant.
        """
        settled = self.phase in (Phase.SETTLING, Phase.SETTLED)
        return self._delivered[choice] if settled else self._durable[choice]

    def waive(self) -> None:
        """A caller takes nothing more."""
        self._changed.set()

    def hand_over(self, choice: int, chunks: int) -> None:
        """A caller has this choice's first `chunks` chunks. Too late once it is settled."""
        if self.phase in (Phase.SETTLING, Phase.SETTLED) or chunks <= self._delivered[choice]:
            return
        self._delivered[choice] = chunks
        self.tally.hand_over(choice, self._chunks[choice][chunks - 1].end)
        self._changed.set()

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

    # Running

    async def run(self) -> None:
        """Run it to its settlement. Never raises but when the spool does."""
        try:
            try:
                prompt, max_tokens = await self._prepare()
            except errors.TollbookError as error:
                self._refuse(error)
                return
            try:
                end = await self._generate(prompt, max_tokens)
            except errors.TollbookError as error:
                self._world.spool.append(records.Withdrawn(self._serial))
                self._refuse(error)
                return
            # Ended is what callers go by: then everything is durable.
            await self._world.spool.durable()
            self.failure = failure_of(end)
            self.phase = Phase.ENDED
            # However long the callers take to read.
            self._admission.leave_gate()
            end = await self._handed_over(end)
            await self._settle(end)
        finally:
            self._admission.close()
            self._span.end()
            self.done.set()
            self._wake()

    async def _prepare(self) -> tuple[port.Prompt, int]:
        spec = self.order.spec
        prompt = await self._world.engine.render(spec, self.order.cache_salt)
        self.prompt_tokens = len(prompt.token_ids)
        room = self._world.engine.capabilities().context_tokens - self.prompt_tokens
        wanted = spec.sampling.max_tokens if spec.sampling.HasField("max_tokens") else room
        max_tokens = min(wanted, room)
        choices = spec.sampling.n or 1
        await self._admission.turn(
            self.order.caller.account_id,
            choices,
            self.prompt_tokens + choices * max_tokens,
            yields=self.order.service_tier == BATCH_TIER,
        )
        size = REQUEST_BYTES + choices * max_tokens * TOKEN_BYTES
        await self._admission.hold(
            size, self.order.cost(self.prompt_tokens, choices * max_tokens, self._accepted_us)
        )
        self._begin(choices)
        return prompt, max_tokens

    def _begin(self, choices: int) -> None:
        self.tally = Tally(self.prompt_tokens, choices)
        self._chunks = [[] for _ in range(choices)]
        self._durable = [0] * choices
        self._delivered = [0] * choices
        self._serial = self._world.spool.journal.next_serial
        trace_id, span_id = telemetry.ids_of(self._span)
        self._world.spool.append(
            records.Started(
                serial=self._serial,
                account_id=self.order.caller.account_id,
                request_id=self.order.request_id,
                body_digest=self.order.body_digest,
                template=self._template().SerializeToString(deterministic=True),
                trace_id=trace_id,
                span_id=span_id,
                prompt_tokens=self.prompt_tokens,
                choices=choices,
            )
        )
        self.phase = Phase.RUNNING
        self._wake()

    def _template(self) -> usage.UsageEvent:
        return self.order.template(
            self._admission.hold_id, self._world.engine_id, self._accepted_us
        )

    def _engine_request_id(self) -> str:
        # The serial makes it new for each attempt: two requests with one id in the
        # engine would die by one abort.
        return f"{self.order.request_id}:{self._serial}"

    async def _generate(self, prompt: port.Prompt, max_tokens: int) -> End:
        job = port.Job(
            engine_request_id=self._engine_request_id(),
            target=self.order.target,
            prompt=prompt,
            sampling=self.order.spec.sampling,
            choices=self.choices,
            max_tokens=max_tokens,
            trace_headers=telemetry.carrier_of(trace.set_span_in_context(self._span)),
        )
        try:
            async for event in self._world.engine.generate(job):
                match event:
                    case port.Tokens():
                        self._take(event)
                    case port.Finished():
                        self.tally.finish(event.choice, event.finish_reason)
                        self.tally.doubt(event.choice, event.doubt)
                        self._world.books.discard(event.surplus_kind, event.surplus_tokens)
                    case port.Admitted():
                        self._in_engine = True
                        if self._stop is not None:
                            self._abort()
                    case port.Ended():
                        break
        except port.EngineFailed as error:
            log.error("the engine failed on a request", request=self.order.request_id)
            self._span.record_exception(error)
            return End.ENGINE_FAILED
        except port.EngineLost:
            return End.ENGINE_LOST
        reasons = {choice.finish_reason for choice in self.tally.choices}
        if usage.FINISH_REASON_ERROR in reasons:
            return End.ENGINE_FAILED
        return self._stop or End.ENGINE_FINISHED

    def _take(self, event: port.Tokens) -> None:
        world, choice = self._world, event.choice
        now_us = world.clock.now_us()
        total = self.tally.add(choice, event.token_ids)
        self.tally.note_cached(choice, event.cached_tokens)
        if event.token_ids and not self._first_token_us:
            self._first_token_us = now_us
        self._chunks[choice].append(_Chunk(total, event.text))
        world.spool.append(
            records.Progress(
                serial=self._serial,
                choice=choice,
                total_tokens=total,
                delivered_tokens=self.tally.choices[choice].delivered_tokens,
                cached_tokens=event.cached_tokens,
                at_us=now_us,
                token_ids=event.token_ids,
                text=event.text,
            ),
            partial(self._became_durable, choice, len(self._chunks[choice])),
        )

    def _became_durable(self, choice: int, chunks: int) -> None:
        self._durable[choice] = chunks
        for reader in self._readers:
            reader.more()

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()

    # Ending

    async def _handed_over(self, end: End) -> End:
        """Wait until the callers have everything, or are gone; gives how it ended for them."""
        clock = self._world.clock
        deadline_ms = clock.monotonic_ms() + HAND_OVER_MS
        self._wake()
        while any(reader.takes for reader in self._readers) and any(
            delivered < len(chunks)
            for delivered, chunks in zip(self._delivered, self._chunks, strict=True)
        ):
            self._changed.clear()
            left_ms = deadline_ms - clock.monotonic_ms()
            try:
                await asyncio.wait_for(self._changed.wait(), max(left_ms, 1) / 1000)
            except TimeoutError:
                self.stop(End.CALLER_LEFT)
                break
        complete_for_caller = self.tally.undelivered_tokens == 0 and self._stop is None
        if end is End.ENGINE_FINISHED and not complete_for_caller:
            return self._stop or End.CALLER_LEFT
        return end

    async def _settle(self, end: End) -> None:
        world, order = self._world, self.order
        event = complete(
            self._template(),
            self.tally,
            end,
            self._first_token_us,
            world.clock.now_us(),
        )
        data = event.SerializeToString(deterministic=True)
        trace_id, span_id = telemetry.ids_of(self._span)
        outbound = world.streams.usage_event(order.caller.account_id, data, trace_id, span_id)
        log_name = usage_log(outbound.partition)
        # From here on its tokens are settled and no longer in flight, in one step.
        self.phase = Phase.SETTLING
        world.books.discard(usage.WASTE_KIND_UNPROVEN, self.tally.doubted_output_tokens)
        world.spool.append(
            records.Settled(
                serial=self._serial,
                account_id=order.caller.account_id,
                request_id=order.request_id,
                body_digest=order.body_digest,
                engine_id=world.engine_id,
                output_tokens=metered_tokens_of(event.quantities),
                event=data,
                log=log_name,
                results=self._results(),
                outbound=outbound,
            )
        )
        self._describe(event)
        await world.spool.durable()
        self._admission.settled()
        self.summary = summary_of(event, log_name)
        self.phase = Phase.SETTLED

    def _results(self) -> tuple[records.ChoiceResult, ...]:
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

    def _describe(self, event: usage.UsageEvent) -> None:
        self._span.set_attributes(
            {
                telemetry.GEN_AI_RESPONSE_ID: event.event_id,
                telemetry.GEN_AI_RESPONSE_MODEL: event.served_model,
                telemetry.GEN_AI_RESPONSE_FINISH_REASONS: tuple(
                    usage.FinishReason.Name(choice.finish_reason)  # type: ignore[arg-type]
                    for choice in self.tally.choices
                ),
                telemetry.GEN_AI_USAGE_INPUT_TOKENS: self.tally.prompt_tokens,
                telemetry.GEN_AI_USAGE_CACHED_TOKENS: self.tally.cached_tokens,
                telemetry.GEN_AI_USAGE_OUTPUT_TOKENS: self.tally.output_tokens,
            }
        )

    def _refuse(self, error: errors.TollbookError) -> None:
        self._admission.refused(self.order.caller.account_id)
        self.refusal = error
        self.phase = Phase.REFUSED


def failure_of(end: End) -> errors.TollbookError | None:
    """What a caller is told of an end that was not its own."""
    match end:
        case End.ENGINE_FAILED:
            return errors.Internal("the engine failed on this request", reason="ENGINE_FAILED")
        case End.ENGINE_LOST:
            return errors.Unavailable(
                "the engine is lost; this request is settled, send a new one under a new id",
                reason="ENGINE_LOST",
                retry_after_ms=5_000,
            )
        case End.DRAINED:
            return errors.Unavailable(
                "the service shuts down; this request is settled, send a new one under a new id",
                reason="DRAINING",
                retry_after_ms=1_000,
            )
        case _:
            return None


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
        cursors = [0] * generation.choices
        told: set[int] = set()
        while True:
            self._event.clear()
            # Read before the pieces: what is durable at the end is then seen by them.
            settled = generation.phase is Phase.SETTLED
            self._check_refusal()
            for choice in range(generation.choices):
                end = generation.given_chunks(choice)
                delta = None if settled else generation.piece(choice, cursors[choice])
                if delta is not None:
                    # Without tokens or text there is nothing to tell.
                    if delta.token_ids or delta.text:
                        yield inference.GenerateResponse(delta=delta)
                    cursors[choice] = end
                    generation.hand_over(choice, end)
                finished = generation.finished(choice)
                if (
                    finished is not None
                    and choice not in told
                    and cursors[choice] == generation.durable_chunks(choice)
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
        ends = [generation.given_chunks(choice) for choice in range(generation.choices)]
        for choice, end in enumerate(ends):
            delta = generation.piece(choice, 0) or inference.Delta()
            finished = generation.finished(choice) or inference.Finished()
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
        if not any(
            cursor < generation.durable_chunks(choice) for choice, cursor in enumerate(cursors)
        ):
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
