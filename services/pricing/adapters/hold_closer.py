"""Holds of accounts with credit that ends or is for a project, or with a spend limit in the way.

What is in their way takes the order of payment or a limit's own words to tell, so
the domain decides it, between two statements of one transaction that holds
the shard's lock. An account with limits comes here until the kinds of their windows are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pricing.adapters import hold_ops, hold_sql
from pricing.adapters.hold_ops import Answer, Made, Reserving
from pricing.adapters.hold_sql import Open
from pricing.adapters.hold_windows import Windows
from pricing.domain.holds import Standing


async def decide(
    db: Any, shard: int, batch: Sequence[Reserving], windows: Windows
) -> list[tuple[Reserving, Answer]]:
    """What is committed and answered. All asks are of one shard, and no hold comes twice.

    `windows` learns of the accounts' limits, so that the next batch may need no closer look.
    """
    await hold_sql.lock(db, shard)
    try:
        answers = await _answers(db, shard, batch, windows)
    except BaseException:
        with suppress(Exception):
            await db.execute("ROLLBACK")
        raise
    await db.execute("COMMIT")
    return answers


async def _answers(
    db: Any, shard: int, batch: Sequence[Reserving], windows: Windows
) -> list[tuple[Reserving, Answer]]:
    found = await hold_sql.snapshot(
        db,
        shard,
        [op.ask.account_id for op in batch],
        [op.hold_id for op in batch],
        # One that grows says nothing of its event: what is open is looked up as it is.
        min((op.ask.event_time_us for op in batch if not op.grows), default=0),
    )
    for standing in found.standings.values():
        windows.learn(standing.account_id, standing.limits)
    answers: list[tuple[Reserving, Answer]] = []
    made: list[Open] = []
    for op in batch:
        older = found.open.get(op.hold_id)
        answer = _decided(op, found, older)
        if isinstance(answer, Made):
            if older is None:
                made.append(answer.hold)
            elif answer.hold != older:
                more_pico = answer.hold.amount_pico - older.amount_pico
                if not await hold_sql.extend(db, op.hold_id, more_pico, answer.hold.expires_us):
                    answer = hold_ops.gone(op.ask)
        answers.append((op, answer))
    if made:
        await hold_sql.make(db, shard, made)
    return answers


def _decided(op: Reserving, found: hold_sql.Snapshot, older: Open | None) -> Answer:
    """What one ask is answered, counting it into the standing when it is granted."""
    ask = op.ask
    standing = found.standings.get(ask.account_id)
    if standing is None:
        return hold_ops.no_account(ask.account_id)
    if op.currency and op.currency != standing.currency:
        return hold_ops.other_currency(ask.account_id, standing.currency, op.currency)
    if older is not None:
        # Asked again for more, as when prices rose meanwhile: the larger amount is held.
        if op.grows or ask.amount_pico > older.amount_pico:
            return _grown(op, found, standing, older)
        return _made(standing, older)
    if op.grows:
        return hold_ops.gone(ask)
    if ask.hold_id in found.charged:
        return hold_ops.charged()
    return hold_ops.refused(standing, ask, ask.amount_pico) or _made(
        standing,
        Open(
            ask.hold_id,
            ask.account_id,
            ask.project_id,
            ask.key_id,
            ask.amount_pico,
            ask.event_time_us,
            found.now_us + op.ttl_us,
        ),
    )


def _grown(op: Reserving, found: hold_sql.Snapshot, standing: Standing, older: Open) -> Answer:
    if older.account_id != op.ask.account_id:
        return hold_ops.gone(op.ask)
    more_pico = max(0, op.ask.amount_pico - older.amount_pico)
    ask = op.ask._replace(
        project_id=older.project_id, key_id=older.key_id, event_time_us=older.event_time_us
    )
    return (hold_ops.refused(standing, ask, more_pico) if more_pico else None) or _made(
        standing,
        older._replace(
            amount_pico=older.amount_pico + more_pico, expires_us=found.now_us + op.ttl_us
        ),
    )


def _made(standing: Standing, hold: Open) -> Made:
    return Made(
        hold, standing.spendable_pico(hold.project_id, hold.event_time_us), standing.currency
    )
