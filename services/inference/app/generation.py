"""One logical request, from its first sight to its settlement.

A detached task runs it, whoever listens: it takes every token from the engine
at once, counts it, and has it recorded. Callers read from the record, and only
what is durable: a caller that goes away, or reads slowly, changes neither the
count nor the memory held. When the engine is done and the callers have what
they will get, the request is settled, by one event, once.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import structlog
from opentelemetry import trace

from inference import engine as port
from inference.app.admission import Admission
from inference.app.answer import Answer
from inference.app.order import REQUEST_BYTES, Order, Phase, World, failure_of
from inference.app.reader import Reader
from inference.app.settlement import settled
from inference.domain import records
from inference.domain.event import BATCH_TIER, complete, summary_of
from inference.domain.outcome import End
from kernel import errors, telemetry
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

log = structlog.get_logger()

# How long a caller may take to read what the engine has finished, before it is cut off.
HAND_OVER_MS: Final = 30_000
# The spool's worst for a token: a progress frame of its own, and its place in the result.
TOKEN_BYTES: Final = 128


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
        self.answer = Answer(0, 1)
        self.done = asyncio.Event()
        self._accepted_us = world.clock.now_us()
        self._first_token_us = 0
        self._serial = -1
        self._admission = Admission(world.gate, world.spool, world.credit)
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
    def counted_tokens(self) -> int:
        """Tokens taken from the engine and not settled."""
        live = self.phase in (Phase.PREPARING, Phase.RUNNING, Phase.ENDED)
        return self.answer.tally.output_tokens if live else 0

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

    def waive(self) -> None:
        """A caller takes nothing more."""
        self._changed.set()

    def hand_over(self, choice: int, chunks: int) -> None:
        """A caller has this choice's first `chunks` chunks. Too late once it is settled."""
        if self.answer.hand_over(choice, chunks):
            self._changed.set()

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
        self.answer = Answer(self.prompt_tokens, choices)
        self._serial = self._world.spool.journal.next_serial
        self._world.spool.append(
            self.order.started(
                self._serial,
                self._template(),
                telemetry.ids_of(self._span),
                self.prompt_tokens,
                choices,
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
            choices=self.answer.choices,
            max_tokens=max_tokens,
            trace_headers=telemetry.carrier_of(trace.set_span_in_context(self._span)),
        )
        tally = self.answer.tally
        try:
            async for event in self._world.engine.generate(job):
                match event:
                    case port.Tokens():
                        self._take(event)
                    case port.Finished():
                        tally.finish(event.choice, event.finish_reason)
                        tally.doubt(event.choice, event.doubt)
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
        reasons = {choice.finish_reason for choice in tally.choices}
        if usage.FINISH_REASON_ERROR in reasons:
            return End.ENGINE_FAILED
        return self._stop or End.ENGINE_FINISHED

    def _take(self, event: port.Tokens) -> None:
        world, choice = self._world, event.choice
        now_us = world.clock.now_us()
        total, chunks = self.answer.take(event)
        if event.token_ids and not self._first_token_us:
            self._first_token_us = now_us
        world.spool.append(
            records.Progress(
                serial=self._serial,
                choice=choice,
                total_tokens=total,
                delivered_tokens=self.answer.tally.choices[choice].delivered_tokens,
                cached_tokens=event.cached_tokens,
                at_us=now_us,
                token_ids=event.token_ids,
                text=event.text,
            ),
            partial(self._became_durable, choice, chunks),
        )

    def _became_durable(self, choice: int, chunks: int) -> None:
        self.answer.became_durable(choice, chunks)
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
        while any(reader.takes for reader in self._readers) and not self.answer.is_handed_over:
            self._changed.clear()
            left_ms = deadline_ms - clock.monotonic_ms()
            try:
                async with asyncio.timeout(max(left_ms, 1) / 1000):
                    await self._changed.wait()
            except TimeoutError:
                self.stop(End.CALLER_LEFT)
                break
        complete_for_caller = self.answer.tally.undelivered_tokens == 0 and self._stop is None
        if end is End.ENGINE_FINISHED and not complete_for_caller:
            return self._stop or End.CALLER_LEFT
        return end

    async def _settle(self, end: End) -> None:
        world, order, tally = self._world, self.order, self.answer.tally
        event = complete(
            self._template(),
            tally,
            end,
            self._first_token_us,
            world.clock.now_us(),
        )
        record = settled(
            world.streams,
            self._serial,
            event,
            order.body_digest,
            telemetry.ids_of(self._span),
            self.answer.results(),
        )
        # From here on its tokens are settled and no longer in flight, in one step.
        self.phase = Phase.SETTLING
        self.answer.close()
        world.books.discard(usage.WASTE_KIND_UNPROVEN, tally.doubted_output_tokens)
        world.spool.append(record)
        self._describe(event)
        await world.spool.durable()
        self._admission.settled()
        self.summary = summary_of(event, record.log)
        self.phase = Phase.SETTLED

    def _describe(self, event: usage.UsageEvent) -> None:
        tally = self.answer.tally
        self._span.set_attributes(
            {
                telemetry.GEN_AI_RESPONSE_ID: event.event_id,
                telemetry.GEN_AI_RESPONSE_MODEL: event.served_model,
                telemetry.GEN_AI_RESPONSE_FINISH_REASONS: tuple(
                    usage.FinishReason.Name(choice.finish_reason)  # type: ignore[arg-type]
                    for choice in tally.choices
                ),
                telemetry.GEN_AI_USAGE_INPUT_TOKENS: tally.prompt_tokens,
                telemetry.GEN_AI_USAGE_CACHED_TOKENS: tally.cached_tokens,
                telemetry.GEN_AI_USAGE_OUTPUT_TOKENS: tally.output_tokens,
            }
        )

    def _refuse(self, error: errors.TollbookError) -> None:
        self._admission.refused(self.order.caller.account_id)
        self.refusal = error
        self.phase = Phase.REFUSED
