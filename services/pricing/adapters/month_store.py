"""The tables of meters and committed months: written with a step, read back at a start."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from pricing.domain.meters import Layer, MeterKey, Month, MonthKey
from pricing.domain.projection import Projection
from pricing.domain.state import MeterMove, MonthMove


async def write(db: Any, meters: Iterable[MeterMove], months: Iterable[MonthMove]) -> None:
    """Write what a step moved, within its transaction."""
    await _write_meters(db, list(meters))
    await _write_months(db, months)


async def _write_meters(db: Any, moves: list[MeterMove]) -> None:
    if not moves:
        return
    units: dict[tuple[MeterKey, Layer], int] = {}
    for move in moves:
        for layer, more in move.units:
            units[move.key, layer] = units.get((move.key, layer), 0) + more
    await db.executemany(
        "INSERT INTO meter VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT"
        " (account_id, currency, card_id, meter, period, card_version, line_id, factor, rule)"
        " DO UPDATE SET units = meter.units + excluded.units",
        [
            (*key, layer.version, layer.line_id, str(layer.factor), layer.rule, more)
            for (key, layer), more in sorted(units.items())
        ],
    )
    await db.copy_records_to_table(
        "meter_move",
        schema_name="pricing",
        records=[
            (
                move.key.account_id,
                move.key.card_id,
                move.key.meter,
                move.key.period,
                move.log,
                move.from_position,
                move.to_position,
                move.control_position,
                json.dumps(
                    [
                        # Text: JSON's readers in other languages round large numbers.
                        [layer.version, layer.line_id, str(layer.factor), layer.rule, str(count)]
                        for layer, count in move.before
                    ]
                ),
            )
            for move in moves
        ],
    )


async def _write_months(db: Any, moves: Iterable[MonthMove]) -> None:
    months: dict[MonthKey, Month] = {}
    for move in moves:
        found = months.get(move.key, Month(0, move.version, False))
        months[move.key] = Month(
            found.charged_pico + move.amount_pico,
            max(found.version, move.version),
            found.is_closed or move.closes,
        )
    if not months:
        return
    await db.executemany(
        "INSERT INTO committed_month VALUES ($1, $2, $3, $4, $5, $6, $7)"
        " ON CONFLICT (account_id, currency, card_id, period) DO UPDATE SET"
        " charged_pico = committed_month.charged_pico + excluded.charged_pico,"
        " card_version = greatest(committed_month.card_version, excluded.card_version),"
        " is_closed = committed_month.is_closed OR excluded.is_closed",
        [(*key, *month) for key, month in sorted(months.items())],
    )


async def restore(db: Any, projection: Projection) -> None:
    """Put every meter and month back where it was kept."""
    for row in await db.fetch("SELECT * FROM meter"):
        projection.restore_meter(
            MeterKey(
                row["account_id"], row["currency"], row["card_id"], row["meter"], row["period"]
            ),
            Layer(row["card_version"], row["line_id"], Fraction(row["factor"]), row["rule"]),
            int(row["units"]),
        )
    for row in await db.fetch("SELECT * FROM committed_month"):
        projection.restore_month(
            MonthKey(row["account_id"], row["currency"], row["card_id"], row["period"]),
            Month(int(row["charged_pico"]), row["card_version"], row["is_closed"]),
        )
