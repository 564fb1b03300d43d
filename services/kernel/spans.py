"""Spans for a process that exports none: the ids that logs are joined by, and nothing else.

OpenTelemetry's own SDK makes a span with its attributes, events and times,
for nobody, at a tenth of what a small call costs.
"""

from __future__ import annotations

from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

_IDS: Final = RandomIdGenerator()
# Sampled: what this process does not record, the next one on the way may.
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class _Current:
    """A span that is the current one inside the block."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def __enter__(self) -> trace.Span:
        self._token = contexts.attach(trace.set_span_in_context(self._span))
        return self._span

    def __exit__(self, *exc: object) -> None:
        contexts.detach(self._token)


class _Tracer(trace.Tracer):
    def start_span(self, name: str, context: Any = None, *args: Any, **more: Any) -> trace.Span:
        parent = trace.get_current_span(context).get_span_context()
        if parent.is_valid:
            return NonRecordingSpan(
                SpanContext(
                    parent.trace_id,
                    _IDS.generate_span_id(),
                    is_remote=False,
                    trace_flags=parent.trace_flags,
                    trace_state=parent.trace_state,
                )
            )
        return NonRecordingSpan(
            SpanContext(
                _IDS.generate_trace_id(),
                _IDS.generate_span_id(),
                is_remote=False,
                trace_flags=_SAMPLED,
            )
        )

    def start_as_current_span(self, name: str, context: Any = None, *args: Any, **more: Any) -> Any:
        return _Current(self.start_span(name, context))


class IdsOnly(trace.TracerProvider):
    """Gives every span its place in a trace, and keeps nothing of it."""

    def get_tracer(self, *args: Any, **more: Any) -> trace.Tracer:
        """The one tracer there is."""
        return _TRACER


_TRACER: Final = _Tracer()
