"""What generations and embeddings share: what is asked for and whose it is, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

from opentelemetry import trace

from inference import engine as port
from inference.adapters.spool import Spool
from inference.app.books import Books
from inference.app.credit import Credit, Request
from inference.app.gate import Gate
from inference.app.streams import Streams
from inference.domain.outcome import End
from inference.domain.records import Started
from kernel import errors
from kernel.clock import Clock, timestamp_of
from tollbook.usage.v1 import usage_pb2 as usage

# The spool's worst for a request, without its tokens.
REQUEST_BYTES: Final = 4_096


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

    def started(
        self,
        serial: int,
        template: usage.UsageEvent,
        trace_ids: tuple[bytes, bytes],
        prompt_tokens: int,
        choices: int,
    ) -> Started:
        """The record of its start. `trace_ids`: of trace and span."""
        trace_id, span_id = trace_ids
        return Started(
            serial=serial,
            account_id=self.caller.account_id,
            request_id=self.request_id,
            body_digest=self.body_digest,
            template=template.SerializeToString(deterministic=True),
            trace_id=trace_id,
            span_id=span_id,
            prompt_tokens=prompt_tokens,
            choices=choices,
        )


class Phase(Enum):
    """How far a generation is."""

    PREPARING = 1
    RUNNING = 2
    ENDED = 3
    SETTLING = 4
    SETTLED = 5
    REFUSED = 6


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
