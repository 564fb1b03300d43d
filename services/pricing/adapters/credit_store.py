"""What a step writes of credit: changes, limits, what was spent, and holds that were charged.

A part of the projector's one transaction (store.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pricing.adapters.known_rows import KnownRows
from pricing.adapters.together import Together, numbers
from pricing.domain import credit, windows
from pricing.domain.holds import hold_id_of
from pricing.domain.state import Limit, Use
from pricing.domain.text import digest_of_parts, escaped, needs_escape
from tollbook.pricing.v1 import accounts_pb2 as accounts

if TYPE_CHECKING:
    from pricing.adapters.store import Step


def known_uses() -> KnownRows:
    """For the uses that a projector writes."""
    return KnownRows("usage_there", _USAGE, _MORE_USAGE)


def write(together: Together, step: Step, known: KnownRows) -> None:
    """Write what was spent, with the rest of the step; `known`: uses that it wrote before."""
    known.write(
        together, ((_usage_key(use), tuple(map(str, used))) for use, used in step.used.items())
    )
    _write_spent(together, step)


async def write_rules(db: Any, step: Step, to_arm: bool) -> None:
    """Write what the control log changed, and what is to see what the step wrote before; `to_arm`:
    there was a rule to arm again before.
    """
    await _write_changes(db, step)
    if await _write_rules(db, step) or (to_arm and step.balances):
        await _arm(db)
    for limit in step.limits.values():
        await _set_limit(db, limit)


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


async def _write_rules(db: Any, step: Step) -> bool:
    """Set top-up rules and count what they paid; tells whether one fired."""
    fired = False
    for change in (change for _, effects in step.effects for change in effects.changes):
        if change.kind == credit.RULE:
            rule = accounts.TopUpRuleSet.FromString(change.body)
            await db.execute(
                "INSERT INTO top_up_rule VALUES ($1, $2, $3, true, 0) ON CONFLICT (account_id)"
                " DO UPDATE SET threshold_pico = excluded.threshold_pico,"
                " amount_pico = excluded.amount_pico, armed = true",
                rule.account_id,
                int(rule.threshold.amount_pico),
                int(rule.amount.amount_pico) if rule.HasField("amount") else None,
            )
        elif change.kind == credit.TOP_UP:
            paid = accounts.CreditToppedUp.FromString(change.body)
            if paid.crossing:
                fired = True
                await db.execute(
                    "UPDATE top_up_rule SET armed = false, crossings = $2 WHERE account_id = $1",
                    paid.account_id,
                    paid.crossing,
                )
    return fired


async def _arm(db: Any) -> None:
    """Arm the rules whose balance is not below."""
    await db.execute(
        "UPDATE top_up_rule r SET armed = true FROM account a, balance b"
        " WHERE NOT r.armed AND a.account_id = r.account_id"
        " AND b.ledger_account = 'account:' || r.account_id AND b.currency = a.currency"
        " AND b.amount_pico >= r.threshold_pico"
    )


_KEPT: Final = 16_384
"""Uses whose key is made once: a step sums what the last ones did, until the minute is over."""

_USAGE: Final = """
INSERT INTO usage_minute
SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
    $7::text[], $8::text[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::int[],
    $14::text[], $15::text[]::numeric[], $16::text[]::numeric[], $17::text[]::numeric[])
ON CONFLICT (use_digest) DO UPDATE SET
    amount = usage_minute.amount + excluded.amount,
    charged = usage_minute.charged + excluded.charged,
    amount_pico = usage_minute.amount_pico + excluded.amount_pico
"""
_MORE_USAGE: Final = """
UPDATE usage_minute u SET
    amount = u.amount + more.amount,
    charged = u.charged + more.charged,
    amount_pico = u.amount_pico + more.amount_pico
FROM unnest($1::bytea[], $2::text[]::numeric[], $3::text[]::numeric[], $4::text[]::numeric[])
    AS more (use_digest, amount, charged, amount_pico)
WHERE u.use_digest = more.use_digest RETURNING 1
"""


@lru_cache(maxsize=_KEPT)
def _usage_key(use: Use) -> tuple[bytes | str | int, ...]:
    texts = tuple(map(str, use))
    plain = _escaped(use) if needs_escape("".join(texts)) else use
    return digest_of_parts(texts), *plain


def _escaped(use: Use) -> tuple[str | int, ...]:
    return tuple(escaped(part) if isinstance(part, str) else part for part in use)


def _write_spent(together: Together, step: Step) -> None:
    if step.spent:
        rows = sorted(step.spent.items())
        together.add(
            "INSERT INTO limit_spent"
            " SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[]::numeric[])"
            " ON CONFLICT (limit_id, window_start_us)"
            " DO UPDATE SET amount_pico = limit_spent.amount_pico + excluded.amount_pico",
            [limit_id for (limit_id, _), _ in rows],
            [start_us for (_, start_us), _ in rows],
            numbers(amount_pico for _, amount_pico in rows),
        )


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
        " GROUP BY 1 HAVING sum(amount_pico) <> 0",
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


def _settled(step: Step) -> list[str]:
    """The holds whose requests are charged by this step: of every event that does not wait for
    a price, and of every one that waited and does no more.
    """
    found: list[str] = []
    for _, effects in step.effects:
        waiting = {entry.event.position for entry in effects.suspended}
        found += (
            identity.hex()
            for position, identity in effects.applied.places()
            if position not in waiting
        )
        found += (
            hold_id_of(entry.event.account_id, entry.event.event_id) for entry in effects.released
        )
        found += (hold_id for _, hold_id in effects.settled_holds)
    return found


def settle_holds(together: Together, step: Step) -> None:
    """Drop the holds of requests that are charged, in the transaction of the charge."""
    if settled := _settled(step):
        together.add(
            "DELETE FROM hold WHERE hold_id IN (SELECT unnest($1::text[]))"
            " RETURNING account_id, amount_pico",
            settled,
            name="gone",
        )
        together.add(
            "INSERT INTO account_settled SELECT account_id, sum(amount_pico) FROM gone GROUP BY 1"
            " ON CONFLICT (account_id) DO UPDATE"
            " SET amount_pico = account_settled.amount_pico + excluded.amount_pico"
        )
