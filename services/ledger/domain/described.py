"""What stands in leaves, as columns for those who search a sealed segment without our formats."""

from __future__ import annotations

from typing import NamedTuple

from kernel import leaf as leaf_format
from ledger.domain.leafrun import LeafRun
from ledger.domain.matching import NANOS, event_of


class Described(NamedTuple):
    """A row for each leaf; None where its record cannot be read as a usage event."""

    disposition: list[int]
    reason: list[int]
    timestamp_ms: list[int]
    account_id: list[str | None]
    served_model: list[str | None]
    event_time_ns: list[int | None]


def describe(run: LeafRun) -> Described:
    """Read the columns out of leaves. Errors: kernel.leaf.LeafError for what is none."""
    found = Described([], [], [], [], [], [])
    for data in run.leaves():
        leaf = leaf_format.decode(data)
        event = None if leaf.aside else event_of(leaf.value)
        found.disposition.append(leaf.disposition)
        found.reason.append(leaf.reason)
        found.timestamp_ms.append(leaf.timestamp_ms)
        found.account_id.append(event.account_id if event is not None else None)
        found.served_model.append(event.served_model if event is not None else None)
        has_time = event is not None and event.HasField("event_time")
        found.event_time_ns.append(
            event.event_time.seconds * NANOS + event.event_time.nanos
            if event is not None and has_time and abs(event.event_time.seconds) < 1 << 33
            else None
        )
    return found
