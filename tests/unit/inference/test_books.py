"""The running account's alarm: a token astray is told, counted and told to be over."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from structlog.testing import capture_logs
from tests.unit.inference.scripted import bench

from inference.app import books
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
    monkeypatch.setattr(books, "SETTLE_MS", 0)
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
