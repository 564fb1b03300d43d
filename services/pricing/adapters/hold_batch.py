"""A batch of asks in one statement: the function decide_holds of the database, and its answers.

One round trip, which is one transaction: it locks the shards of its accounts
in order, decides, writes and commits. A server that dies or is paused over it
keeps nobody waiting, for the statement ends without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pricing.adapters import hold_ops
from pricing.adapters.hold_ops import Answer, Made, Op, Releasing, Reserving
from pricing.adapters.hold_sql import Open
from pricing.adapters.hold_windows import Windows
from pricing.domain.holds import Standing

_DECIDE: Final = (
    "SELECT * FROM decide_holds($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
)
_MAKE, _GROW, _RELEASE = 0, 1, 2


def _columns_of(op: Op) -> tuple[Any, ...]:
    if isinstance(op, Releasing):
        return op.shard, _RELEASE, op.hold_id, op.account_id, "", "", "", 0, 0, 0
    ask = op.ask
    return (
        op.shard,
        _GROW if op.grows else _MAKE,
        ask.hold_id,
        ask.account_id,
        ask.project_id,
        ask.key_id,
        op.currency,
        ask.amount_pico,
        ask.event_time_us,
        op.ttl_us,
    )


async def decide(
    db: Any, batch: Sequence[Op], windows: Windows
) -> tuple[list[tuple[Op, Answer]], list[Reserving]]:
    """(What is committed and answered, what needs a closer look). No hold comes twice in it."""
    asked = map(list, zip(*map(_columns_of, batch), strict=True))
    rows = await db.fetch(_DECIDE, *asked, *windows.columns(batch))
    answers: list[tuple[Op, Answer]] = []
    closer: list[Reserving] = []
    for row in rows:
        op = batch[row["place"] - 1]
        if isinstance(op, Releasing):
            answers.append((op, row["outcome"] == "RELEASED"))
        elif row["outcome"] == "CLOSER":
            closer.append(op)
        else:
            answers.append((op, _answer(op, row)))
    return answers, closer


def _answer(op: Reserving, row: Any) -> Answer:
    ask = op.ask
    match row["outcome"]:
        case "MADE" | "FOUND" | "GROWN":
            hold = Open(
                ask.hold_id,
                ask.account_id,
                row["project_id"],
                row["key_id"],
                int(row["amount_pico"]),
                row["event_time_us"],
                row["expires_us"],
            )
            return Made(hold, int(row["free_pico"]), row["currency"])
        case "GONE":
            return hold_ops.gone(ask)
        case "NO_ACCOUNT":
            return hold_ops.no_account(ask.account_id)
        case "CURRENCY":
            return hold_ops.other_currency(ask.account_id, row["currency"], op.currency)
        case "CHARGED":
            return hold_ops.charged()
        case "NO_CREDIT":
            standing = Standing(ask.account_id, row["currency"], int(row["free_pico"]), 0, 0)
            refusal = hold_ops.refused(standing, ask, int(row["amount_pico"]))
            if refusal is not None:
                return refusal
    raise AssertionError(f"decide_holds and domain/holds.py do not agree: {dict(row)}")
