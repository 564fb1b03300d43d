"""The record that settles a request, whatever it asked for, also after a crash."""

from __future__ import annotations

from collections.abc import Sequence

from inference.app.streams import Streams
from inference.domain.counting import metered_tokens_of
from inference.domain.records import ChoiceResult, Settled
from kernel.placement import usage_log
from tollbook.usage.v1 import usage_pb2 as usage


def settled(
    streams: Streams,
    serial: int,
    event: usage.UsageEvent,
    body_digest: bytes,
    trace_ids: tuple[bytes, bytes],
    results: Sequence[ChoiceResult],
) -> Settled:
    """A request's settlement by its event, which takes the next number of its stream: the spool is
    given it before anything is awaited. `trace_ids`: of trace and span.
    """
    data = event.SerializeToString(deterministic=True)
    outbound = streams.usage_event(event.account_id, data, *trace_ids)
    return Settled(
        serial=serial,
        account_id=event.account_id,
        request_id=event.event_id,
        body_digest=body_digest,
        engine_id=event.engine_id,
        output_tokens=metered_tokens_of(event.quantities),
        event=data,
        log=usage_log(outbound.partition),
        results=tuple(results),
        outbound=outbound,
    )
