"""The running account's alarm: a token astray is told, counted and told to be over."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from structlog.testing import capture_logs
from tests.unit.inference.scripted import bench

from inference.app import books
from kernel.clock import SystemClock
from tollbook.usage.v1 import usage_pb2 as usage


def gauges(reader: InMemoryMetricReader) -> dict[str, float]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: metric.data.data_points[0].value  # type: ignore[union-attr]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_a_token_astray_is_an_alarm_and_a_metric_until_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    # What is there at once is there later: the second look has nothing to wait for.
    monkeypatch.setattr(books, "SETTLE_LOOKS", 0)
    made = bench(tmp_path)
    with capture_logs() as told:
        assert await made.books.look() == 0
        assert gauges(reader)[books.RESIDUAL_METRIC] == 0
        # The engine counts three tokens that no request has.
        made.engine.generation_tokens += 3
        assert await made.books.look() == 3
        assert await made.books.look() == 3
        assert gauges(reader)[books.RESIDUAL_METRIC] == 3
        made.books.discard(usage.WASTE_KIND_PROBE, 3)
        assert await made.books.look() == 0
        assert gauges(reader)[books.RESIDUAL_METRIC] == 0
    assert [(line["event"], line["log_level"]) for line in told] == [
        ("tokens are not conserved", "error"),
        ("tokens are conserved again", "warning"),
    ]
    made.books.publish()
    await made.books.look()
    assert gauges(reader)[books.BACKLOG_METRIC] == 1
    await made.spool.close()
    provider.shutdown()


async def test_a_process_that_stood_still_looks_again_before_it_says_that_tokens_are_astray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.count(step=3_600_000)
    # An hour goes by between any two looks; at the fifth the tokens have come.
    monkeypatch.setattr(SystemClock, "monotonic_ms", lambda _: next(hours))
    made = bench(tmp_path)
    made.engine.generation_tokens += 3
    real, looks = made.books.residual, itertools.count(1)

    def residual() -> int:
        if next(looks) == 5:
            made.books.discard(usage.WASTE_KIND_PROBE, 3)
        return real()

    monkeypatch.setattr(made.books, "residual", residual)
    assert await made.books.settled_residual() == 0
    await made.spool.close()
