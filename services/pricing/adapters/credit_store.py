"""What a step writes of credit: changes, limits, what was spent, and holds that were charged.

A part of the projector's one transaction (store.py).
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

from pricing.domain import credit, windows
from pricing.domain.state import Limit, Use, Used
from pricing.domain.text import escaped
from tollbook.pricing.v1 import accounts_pb2 as accounts

if TYPE_CHECKING:
    from pricing.adapters.store import Step

_HOLD_ID: Final = re.compile(r"[0-9a-f]{32}")


async def write(db: Any, step: Step) -> None:
    """Write it, inside the step's transaction."""
    await _write_changes(db, step)
    await _write_usage(db, step)
    await _write_spent(db, step)
    await _settle_holds(db, step)


async def _write_changes(db: Any, step: Step) -> None:
    made = [effects for _, effects in step.effects]
    recorded = [item for effects in made for item in effects.recorded]
    if recorded:
        await db.copy_records_to_table(
            "control_time",
            schema_name="pricing",
            records=recorded,
            columns=("control_position", "recorded_us"),
        )
    changes = [change for effects in made for change in effects.changes]
    if changes:
        await db.copy_records_to_table(
            "control_change",
            schema_name="pricing",
            records=changes,
            columns=("kind", "change_id", "account_id", "control_position", "body"),
        )
    for change in changes:
        if change.kind == credit.EXPIRED:
            body = accounts.CreditExpired.FromString(change.body)
            await db.execute(
                "UPDATE credit_grant SET expired_pico = $2 WHERE grant_id = $1",
                body.grant_id,
                int(body.amount.amount_pico),
            )
    for terms in (terms for effects in made for terms in effects.terms):
        await db.execute(
            "UPDATE account SET credit_limit_pico = $2 WHERE account_id = $1",
            terms.account_id,
            terms.credit_limit_pico,
        )


_USAGE = """
INSERT INTO usage_minute
SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
    $7::text[], $8::text[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::int[],
    $14::text[], $15::numeric[], $16::numeric[], $17::numeric[])
ON CONFLICT (use_digest) DO UPDATE SET
    amount = usage_minute.amount + excluded.amount,
    charged = usage_minute.charged + excluded.charged,
    amount_pico = usage_minute.amount_pico + excluded.amount_pico
"""


def use_digest(use: Use) -> bytes:
    """What a row of usage is found again by (16 bytes)."""
    text = "".join(f"{len(part)}:{part}" for part in map(str, use))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


async def _write_usage(db: Any, step: Step) -> None:
    if not step.used:
        return
    # In one order, so that the pages it touches are touched once.
    rows = sorted((use_digest(use), use, used) for use, used in step.used.items())
    columns: list[list[Any]] = [[digest for digest, _, _ in rows]]
    for index, name in enumerate(Use._fields):
        plain = name in ("minute_us", "card_version")
        columns.append([use[index] if plain else escaped(str(use[index])) for _, use, _ in rows])
    columns += [[used[index] for _, _, used in rows] for index in range(len(Used._fields))]
    await db.execute(_USAGE, *columns)


async def _write_spent(db: Any, step: Step) -> None:
    if step.spent:
        rows = sorted(step.spent.items())
        await db.execute(
            "INSERT INTO limit_spent SELECT * FROM unnest($1::text[], $2::bigint[], $3::numeric[])"
            " ON CONFLICT (limit_id, window_start_us)"
            " DO UPDATE SET amount_pico = limit_spent.amount_pico + excluded.amount_pico",
            [limit_id for (limit_id, _), _ in rows],
            [start_us for (_, start_us), _ in rows],
            [amount_pico for _, amount_pico in rows],
        )
    for limit in step.limits.values():
        await _set_limit(db, limit)


async def _set_limit(db: Any, limit: Limit) -> None:
    """Put a limit in force, or lift it, and count its windows from all usage there is."""
    await db.execute("DELETE FROM limit_spent WHERE limit_id = $1", limit.limit_id)
    await db.execute("DELETE FROM spend_limit WHERE limit_id = $1", limit.limit_id)
    if limit.amount_pico is None:
        return
    await db.execute(
        "INSERT INTO spend_limit VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        limit.limit_id,
        limit.account_id,
        limit.project_id,
        limit.key_id,
        limit.window,
        limit.time_zone,
        limit.amount_pico,
        limit.position,
    )
    minutes = await db.fetch(
        "SELECT minute_us, sum(amount_pico) AS amount_pico FROM usage_minute"
        " WHERE account_id = $1 AND ($2 = '' OR project_id = $2) AND ($3 = '' OR key_id = $3)"
        " AND amount_pico > 0 GROUP BY 1",
        limit.account_id,
        limit.project_id,
        limit.key_id,
    )
    spent: dict[int, int] = {}
    for row in minutes:
        start_us = windows.window_start_us(limit.window, limit.time_zone, row["minute_us"])
        spent[start_us] = spent.get(start_us, 0) + int(row["amount_pico"])
    if spent:
        await db.copy_records_to_table(
            "limit_spent",
            schema_name="pricing",
            records=[(limit.limit_id, *item) for item in sorted(spent.items())],
            columns=("limit_id", "window_start_us", "amount_pico"),
        )


async def _settle_holds(db: Any, step: Step) -> None:
    """Drop the holds whose requests are charged by this step."""
    settled = [
        hold
        for _, effects in step.effects
        for hold in effects.settled_holds
        # What a stranger wrote there may be anything: no hold has such an id.
        if _HOLD_ID.fullmatch(hold[1])
    ]
    if settled:
        await db.execute(
            "WITH gone AS (DELETE FROM hold USING unnest($1::text[], $2::text[])"
            "   AS done (account_id, hold_id)"
            "   WHERE hold.hold_id = done.hold_id AND hold.account_id = done.account_id"
            "   RETURNING hold.account_id, hold.amount_pico)"
            " INSERT INTO account_settled SELECT account_id, sum(amount_pico) FROM gone GROUP BY 1"
            " ON CONFLICT (account_id) DO UPDATE"
            " SET amount_pico = account_settled.amount_pico + excluded.amount_pico",
            [escaped(account_id) for account_id, _ in settled],
            [hold_id for _, hold_id in settled],
        )
