"""What a committed step tells: a span under each request's own trace, and alarms.

Bounded for each step: at speed a step has thousands of events, and a span
for each would cost more than rating it.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

import structlog
from opentelemetry import trace
from opentelemetry.util.types import AnyValue

from kernel import telemetry
from pricing.adapters.store import Step
from pricing.domain.applications import Applied

log = structlog.get_logger()
tracer = telemetry.tracer("pricing.projector")

_MAX_TRACED: Final = 64
_MAX_ALARMS: Final = 16


def tell(step: Step) -> None:
    """Say what was posted and what is wrong."""
    applied = (
        (name, event)
        for name, effects in step.effects
        for event in effects.applied.some(_MAX_TRACED)
    )
    for name, event in islice(applied, _MAX_TRACED):
        _trace_posting(name, event)
    if step.events > _MAX_TRACED:
        log.info("posted", events=step.events, traced=_MAX_TRACED)
    waiting = list(step.suspended.values())
    if waiting:
        entry = waiting[0]
        log.error(
            "usage without a price waits in suspense",
            entries=len(waiting),
            log=entry.log,
            position=entry.event.position,
            account_id=entry.event.account_id,
            model=entry.event.context.model,
        )
    ignored = (entry for _, effects in step.effects for entry in effects.ignored)
    for refused in islice(ignored, _MAX_ALARMS):
        log.error("entry ignored", log=refused.log, position=refused.position, why=refused.why)


def _trace_posting(name: str, event: Applied) -> None:
    attributes: dict[str, AnyValue] = {
        telemetry.ACCOUNT: event.account_id,
        telemetry.REQUEST: event.event_id,
        telemetry.LOG: name,
        telemetry.POSITION: event.position,
    }
    with tracer.start_as_current_span(
        "post charge",
        context=telemetry.context_of_ids(event.trace_id, event.span_id),
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
    ):
        log.info(
            "posted",
            account_id=event.account_id,
            request_id=event.event_id,
            log=name,
            position=event.position,
        )
