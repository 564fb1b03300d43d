"""What is left of grants at their ends, by the projection's tables."""

from __future__ import annotations

from typing import Any, Final

from kernel.placement import CONTROL_LOG, partition_of_log
from pricing.adapters import queries
from pricing.domain.credits import Charge, Lot, settle
from pricing.domain.windows import month_bounds_us
from tollbook.pricing.v1 import accounts_pb2, card_records_pb2

_DUE: Final = (
    "SELECT DISTINCT account_id FROM credit_grant WHERE expires_us <= $1 AND expired_pico IS NULL"
    " ORDER BY account_id"
)
_GRANTS: Final = (
    "SELECT g.*, a.currency FROM credit_grant g JOIN account a USING (account_id)"
    " WHERE g.account_id = $1"
)
_CHARGES: Final = (
    "SELECT project_id, minute_us, sum(amount_pico) AS amount_pico FROM usage_minute"
    " WHERE account_id = $1 GROUP BY 1, 2"
)


async def any_due(db: Any, period: str) -> bool:
    """Tell whether a grant ended by the end of a month and is not recorded as expired."""
    _, end_us = month_bounds_us(period, "UTC")
    return bool(await db.fetch(_DUE + " LIMIT 1", end_us))


async def due(db: Any, period: str) -> list[accounts_pb2.CreditExpired]:
    """What is left of each grant that ended by the end of a month and is not recorded as expired.

    In one snapshot, whose sizes of the logs each record states: an auditor comes to the same
    from them. Charges pay in the order of domain/credits.py.
    """
    _, end_us = month_bounds_us(period, "UTC")
    sizes = await queries.positions(db)
    logs = [
        card_records_pb2.LogSize(log=log, size=size)
        for log, size in sorted(sizes.items())
        if partition_of_log(log) is not None
    ]
    found: list[accounts_pb2.CreditExpired] = []
    for owner in await db.fetch(_DUE, end_us):
        grants = await db.fetch(_GRANTS, owner["account_id"])
        lots = [
            Lot(
                row["priority"],
                row["expires_us"],
                row["control_position"],
                row["grant_id"],
                row["project_id"],
                int(row["amount_pico"]) - int(row["expired_pico"] or 0),
            )
            for row in grants
        ]
        charges = [
            Charge(row["minute_us"], row["project_id"], int(row["amount_pico"]))
            for row in await db.fetch(_CHARGES, owner["account_id"])
        ]
        left = settle(lots, charges).left
        found += [
            accounts_pb2.CreditExpired(
                grant_id=row["grant_id"],
                account_id=row["account_id"],
                amount=queries.amount(row["currency"], left[row["grant_id"]]),
                logs=logs,
                control_size=sizes.get(CONTROL_LOG, 0),
            )
            for row in grants
            if row["expires_us"] <= end_us and row["expired_pico"] is None
        ]
    return found
