"""One trace id over metadata, headers and ids; logs as JSON lines that carry it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from opentelemetry import trace
from opentelemetry.trace import TraceFlags

from kernel import telemetry
from kernel.spans import IdsOnly

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_a_traceparent_goes_through_ids_and_back() -> None:
    telemetry.configure_tracing("test")
    context = telemetry.context_from({"traceparent": PARENT})
    with telemetry.tracer("test").start_as_current_span("one", context=context) as span:
        trace_id, span_id = telemetry.ids_of(span)
        assert trace_id.hex() == TRACE
        assert telemetry.carrier_of()["traceparent"].split("-")[1:3] == [TRACE, span_id.hex()]
    later = telemetry.context_of_ids(trace_id, span_id)
    assert telemetry.carrier_of(later)["traceparent"] == f"00-{TRACE}-{span_id.hex()}-01"


def test_a_process_that_exports_nothing_has_spans_all_the_same() -> None:
    tracer = IdsOnly().get_tracer("test")
    before = trace.get_current_span()
    with tracer.start_as_current_span("outer") as outer:
        assert trace.get_current_span() is outer
        assert outer.get_span_context().trace_flags == TraceFlags.SAMPLED
        with tracer.start_as_current_span("inner", kind=trace.SpanKind.SERVER) as inner:
            # Whoever is asked by it goes on with the same trace.
            assert telemetry.carrier_of()["traceparent"].split("-")[2] == (
                f"{inner.get_span_context().span_id:016x}"
            )
        assert trace.get_current_span() is outer
        elsewhere = tracer.start_span("elsewhere", trace.set_span_in_context(trace.INVALID_SPAN))
    assert trace.get_current_span() is before
    own, child, other = (span.get_span_context() for span in (outer, inner, elsewhere))
    assert own.is_valid
    assert child.trace_id == own.trace_id
    assert child.span_id != own.span_id
    assert other.trace_id != own.trace_id
    assert not outer.is_recording()


def test_ids_of_a_wrong_length_are_no_parent() -> None:
    for trace_id, span_id in ((b"", b""), (b"x" * 15, b"x" * 8), (b"x" * 16, b"x" * 9)):
        context = telemetry.context_of_ids(trace_id, span_id)
        assert not trace.get_current_span(context).get_span_context().is_valid
    assert telemetry.ids_of(trace.INVALID_SPAN) == (b"", b"")
    assert telemetry.carrier_of(telemetry.context_from({"traceparent": "rubbish"})) == {}


_PROGRAM = """
import logging, structlog
from kernel import telemetry
telemetry.configure("ledger", "INFO")
log = structlog.get_logger()
log.debug("not told")
with telemetry.tracer("t").start_as_current_span("s") as span:
    log.info("told", log="usage-1", position=7)
logging.getLogger("aiokafka").warning("a library's %s", "warning")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def test_all_logs_are_json_lines_on_stderr_with_service_and_trace() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("OTEL_")},
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        },
    )
    assert done.stdout == ""
    told, warned, failed = (json.loads(line) for line in done.stderr.splitlines())
    assert (told["event"], told["level"], told["service"]) == ("told", "info", "ledger")
    assert (told["log"], told["position"]) == ("usage-1", 7)
    assert len(told["trace_id"]) == 32
    assert len(told["span_id"]) == 16
    assert (warned["event"], warned["logger"]) == ("a library's warning", "aiokafka")
    assert "trace_id" not in warned
    assert "ZeroDivisionError" in failed["exception"]
