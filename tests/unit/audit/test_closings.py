"""Closed months in an export: a true closing counts, one that says something else does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.audit.world import (
    Producer,
    World,
    account,
    card,
    control_record,
    grant,
    usage_event,
)

from audit.auditor import audit
from pricing.domain.statement import state
from tollbook.pricing.v1 import accounts_pb2

DECEMBER = "2025-12"
"""The month that is over when the world's records are made."""


@pytest.mark.parametrize(("more_pico", "told"), [(0, ""), (1, "it says charged 1 pico, the logs")])
def test_a_closing_is_computed_again(more_pico: int, told: str, tmp_path: Path) -> None:
    world = World()
    world.change(card(), account("acme"), grant("g1", "acme", 10**12))
    one = Producer("p/1/0")
    world.take("usage-0", one.record(usage_event("a1", "acme", plain=100)))
    world.change(control_record(period_ended=accounts_pb2.PeriodEnded(period=DECEMBER)))
    world.take("usage-0", one.record(usage_event("a2", "acme", plain=1)))
    projection = world.replay().projection
    end = projection.control.ends.of(DECEMBER)
    assert end is not None
    entries = projection.closings.passed.entries(["usage-0"], end, None)
    made = state(projection.bills, ("acme", "USD"), end, entries, None).record()
    made.charged.amount_pico = str(int(made.charged.amount_pico) + more_pico)
    world.change(control_record(period_closed=made))
    world.serve()
    world.cut()
    report = audit(*world.write(tmp_path))
    # The service refused it as well, so that nothing differs; but it stands in the log.
    assert report.ok
    said = [note for note in report.notes if "it counts for nothing" in note]
    assert [told in one for one in said] == ([True] if told else [])
    closed = world.replay().projection.closings.closed.get("acme", [])
    assert len(closed) == (0 if told else 1)
