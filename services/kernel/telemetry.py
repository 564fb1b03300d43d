"""Logs, traces, metrics: structlog JSON on stderr, OpenTelemetry when an exporter is set.

One trace id goes from the caller's request over Kafka headers and the usage
record's envelope to the posting. Nothing is exported unless the standard
variable OTEL_EXPORTER_OTLP_ENDPOINT (or its traces form) is set; trace ids
are made and carried all the same, so that logs can be joined by them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Final

import structlog
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from kernel.spans import IdsOnly

# OpenTelemetry semantic conventions for generative AI (still experimental, so
# named here once instead of imported from a package that renames them).
GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
ACCOUNT: Final = "tollbook.account_id"
REQUEST: Final = "tollbook.request_id"
LOG: Final = "tollbook.log"
POSITION: Final = "tollbook.position"


def _add_trace(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid and "trace_id" not in event:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def configure_logging(service: str, level: str = "INFO") -> None:
    """Send structlog's and the standard library's records to stderr as JSON lines."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, getattr(logging, level)))
    structlog.contextvars.bind_contextvars(service=service, pid=os.getpid())


def configure_tracing(service: str) -> None:
    """Install the tracer provider; spans leave the process only when an endpoint is set."""
    if not (
        os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    ):
        trace.set_tracer_provider(IdsOnly())
        return
    # Imported only when wanted: it costs a tenth of a second at each start.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def configure_metrics(service: str) -> None:
    """Install the meter provider when an endpoint is set; without one nothing is counted."""
    if not (
        os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    ):
        return
    # Imported only when wanted, as for traces.
    from opentelemetry import metrics
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    metrics.set_meter_provider(
        MeterProvider(
            [PeriodicExportingMetricReader(OTLPMetricExporter())],
            Resource.create({SERVICE_NAME: service}),
        )
    )


def configure(service: str, level: str = "INFO") -> None:
    """Set up logs and traces of a process."""
    configure_logging(service, level)
    configure_tracing(service)


def tracer(name: str) -> trace.Tracer:
    """The tracer of a module."""
    return trace.get_tracer(name)


def records() -> bool:
    """Whether spans go to anybody; if not, what is only told to them need not be found out."""
    return not isinstance(trace.get_tracer_provider(), IdsOnly)


def context_from(carrier: Mapping[str, str]) -> Context:
    """Context of the W3C traceparent in metadata or headers (lower-case names)."""
    return propagate.extract(carrier)


def carrier_of(context: Context | None = None) -> dict[str, str]:
    """W3C traceparent of a context, by default the current one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    return carrier


def ids_of(span: trace.Span) -> tuple[bytes, bytes]:
    """(trace id, span id) of a span as bytes; empty when it has none."""
    context = span.get_span_context()
    if not context.is_valid:
        return b"", b""
    return context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")


def context_of_ids(trace_id: bytes, span_id: bytes) -> Context:
    """Context whose parent is the span with these ids; an empty context when they are empty."""
    if len(trace_id) != 16 or len(span_id) != 8:
        return Context()
    parent = SpanContext(
        int.from_bytes(trace_id, "big"),
        int.from_bytes(span_id, "big"),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())
