"""What is left of grants at their ends, by the projection's tables."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from pricing.domain.credits import Charge, Lot, settle
from pricing.domain.windows import month_bounds_us

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


class Expired(NamedTuple):
    """A grant that ended, and what is left of it in pico-units; it may be 0."""

    grant_id: str
    account_id: str
    currency: str
    left_pico: int


async def due(db: Any, period: str) -> list[Expired]:
    """The grants that ended by the end of a month and are not recorded as expired, in one snapshot.

    Charges pay in the order of domain/credits.py.
    """
    _, end_us = month_bounds_us(period, "UTC")
    found: list[Expired] = []
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
            Expired(row["grant_id"], row["account_id"], row["currency"], left[row["grant_id"]])
            for row in grants
            if row["expires_us"] <= end_us and row["expired_pico"] is None
        ]
    return found
