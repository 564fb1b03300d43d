"""Receipts of lines that a month decides: rated again from what the meters stood at before a run.

A run is at most what the projector rated at once. Of it, the account's events
up to the one that is asked for are read again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from pricing.adapters.ledger_client import Ledger
from pricing.domain.books import NO_CONTROL
from pricing.domain.events import Event, UnusableLeafError, read_event
from pricing.domain.meters import Layer, MeterKey, Meters
from pricing.domain.projection import Projection
from pricing.domain.rate import Months
from pricing.domain.rating import rate_event

_MOVES = (
    "SELECT * FROM meter_move WHERE account_id = $1 AND log = $2 AND from_position <= $3"
    " AND to_position > $3 AND rated_at_control = $4"
)


async def moves(db: Any, account_id: str, log: str, position: int) -> list[Any]:
    """What the meters that an event moved stood at before its run; nothing of a later release."""
    rows: list[Any] = await db.fetch(_MOVES, account_id, log, position, NO_CONTROL)
    return rows


async def months_before(
    projection: Projection,
    ledger: Ledger,
    log: str,
    event: Event,
    currency: str,
    rows: Sequence[Any],
) -> Months:
    """The meters as an event met them. The control log is applied up to the run's pin."""
    meters = Meters()
    for row in rows:
        key = MeterKey(event.account_id, currency, row["card_id"], row["meter"], row["period"])
        meters.counts.setdefault(key, {})
        for version, line_id, factor, rule, count in json.loads(row["before"]):
            layer = Layer(version, line_id, Fraction(factor), rule)
            meters.put(key, layer, int(count), projection.version(row["card_id"], version))
    months = Months(meters, None)
    first = min((row["from_position"] for row in rows), default=event.position)
    if first < event.position:
        async for run in ledger.read(log, first, event.position):
            catalogue = projection.control.catalogue(run.pin)
            for position, raw in enumerate(run.leaves, run.first_position):
                try:
                    earlier = read_event(position, raw)
                except UnusableLeafError:
                    continue
                if earlier.account_id == event.account_id:
                    months.receipt(earlier, currency, rate_event(earlier, currency, catalogue))
    return months
