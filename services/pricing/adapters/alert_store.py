"""Alerts raised in the projector's own transaction: with the charge that raises one, or not at all.

Owns the tables of alerts but for their delivery (webhooks.py). A look costs
nothing where no rule is set, and else what the accounts of the step cost.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from pricing.adapters.alert_rules import Alerts, Rule
from pricing.domain import alerting, books, windows
from pricing.domain.alerting import Level
from pricing.domain.text import escaped

if TYPE_CHECKING:
    from pricing.adapters.store import Step

log = structlog.get_logger()

MAX_UNDELIVERED: Final = 100_000
"""Of one webhook: beyond it alerts are kept and not sent, and that is an error in the log."""

_STANDINGS: Final = """
SELECT a.account_id, a.credit_limit_pico, coalesce(b.amount_pico, 0) AS balance,
       (SELECT count(*) FROM suspense s WHERE s.account_id = a.account_id) AS waiting
FROM account a LEFT JOIN balance b
  ON b.ledger_account = 'account:' || a.account_id AND b.currency = a.currency
WHERE $1::text[] IS NULL OR a.account_id = ANY($1)
"""
_ADD: Final = """
INSERT INTO alert_window
SELECT r, a, s, p, false FROM unnest($1::text[], $2::text[], $3::bigint[], $4::numeric[])
    AS t (r, a, s, p)
ON CONFLICT (rule_id, account_id, window_start_us)
DO UPDATE SET amount_pico = alert_window.amount_pico + excluded.amount_pico
RETURNING rule_id, account_id, window_start_us, amount_pico, told
"""
_Windows = dict[tuple[str, str, int], int]


class Standing(NamedTuple):
    """An account as rules look at it."""

    balance_pico: int
    credit_limit_pico: int
    waiting: int
    """Entries in suspense."""
    spent_pico: int = 0
    """In the newest hour of the step; of rules that look at it."""


class Fired(NamedTuple):
    """An alert, before it is written."""

    rule: Rule
    account_id: str
    of: str
    """The window's first instant, or the number of the crossing."""
    value: int
    threshold: int
    window_start_us: int | None


class Watch:
    """The rules, and what they find in each step."""

    def __init__(self, alerts: Alerts) -> None:
        self._webhooks = [webhook.name for webhook in alerts.webhooks]
        self._rules = {rule.id: rule for rule in alerts.rules}

    async def prepare(self, db: Any) -> None:
        """Count for rules that are new or changed, and forget those that are gone."""
        async with db.transaction():
            rows = await db.fetch("SELECT rule_id, definition FROM alert_rule")
            known = {row["rule_id"]: row["definition"] for row in rows}
            made = {rule_id: rule.model_dump_json() for rule_id, rule in self._rules.items()}
            changed = [
                rule_id for rule_id in known | made if known.get(rule_id) != made.get(rule_id)
            ]
            for table in ("alert_rule", "alert_window"):
                await db.execute(
                    f"DELETE FROM {table} WHERE rule_id = ANY($1)",  # noqa: S608 - ours
                    changed,
                )
            for rule_id in changed:
                if rule_id in made:
                    await self._count(db, self._rules[rule_id])
                    await db.execute(
                        "INSERT INTO alert_rule VALUES ($1, $2)", rule_id, made[rule_id]
                    )

    async def _count(self, db: Any, rule: Rule) -> None:
        """Begin with what there is: only what crosses from here on is told."""
        standings = await _standings(db, None)
        if rule.span is None:
            # Crossings go on from the last number, so that no id ever comes twice.
            await db.executemany(
                "INSERT INTO alert_level VALUES ($1, $2, $3, 0) ON CONFLICT (rule_id, account_id)"
                " DO UPDATE SET is_over = excluded.is_over",
                [
                    (rule.id, account_id, _is_over(rule, standing)[0])
                    for account_id, standing in standings.items()
                    if rule.covers(account_id)
                ],
            )
            return
        spent: _Windows = {}
        for row in await db.fetch(
            "SELECT account_id, minute_us, sum(amount_pico) AS amount_pico FROM usage_minute"
            " GROUP BY 1, 2"
        ):
            if rule.covers(row["account_id"]):
                _spend(spent, rule, row["account_id"], row["minute_us"], int(row["amount_pico"]))
        await db.copy_records_to_table(
            "alert_window",
            schema_name="pricing",
            records=[
                (*key, pico, rule.kind == "spent" and pico >= (rule.amount or 0))
                for key, pico in sorted(spent.items())
            ],
        )

    async def look(self, db: Any, step: Step) -> None:
        """Raise what a step gives cause for, inside its transaction."""
        if not self._rules:
            return
        seen = {row["log"]: row["size"] for row in await db.fetch("SELECT * FROM alert_seen")}
        is_new = any(end > seen.get(name, 0) for name, (_, end) in step.moves.items())
        fired, hours = await self._windows(db, step)
        if is_new:
            fired += await self._levels(db, step, hours)
            await self._raise(db, step, fired)
        await db.executemany(
            "INSERT INTO alert_seen VALUES ($1, $2) ON CONFLICT (log)"
            " DO UPDATE SET size = greatest(alert_seen.size, excluded.size)",
            [(name, end) for name, (_, end) in step.moves.items()],
        )

    async def _windows(self, db: Any, step: Step) -> tuple[list[Fired], dict[str, int]]:
        """What windows give; and of accounts what they spent in their newest hour of the step."""
        spent: _Windows = {}
        ruled = [rule for rule in self._rules.values() if rule.span is not None]
        for use, used in step.used.items():
            for rule in ruled:
                if used.amount_pico and rule.covers(use.account_id):
                    _spend(spent, rule, use.account_id, use.minute_us, used.amount_pico)
        if not spent:
            return [], {}
        keys = sorted(spent)
        columns: list[list[Any]] = [list(column) for column in zip(*keys, strict=True)]
        rows = await db.fetch(_ADD, *columns, [spent[key] for key in keys])
        fired: list[Fired] = []
        newest: dict[str, tuple[int, int]] = {}
        for row in rows:
            rule, pico = self._rules[row["rule_id"]], int(row["amount_pico"])
            account_id, start_us = row["account_id"], row["window_start_us"]
            if rule.kind == "burn_rate":
                newest[account_id] = max((start_us, pico), newest.get(account_id, (0, 0)))
            elif not row["told"]:
                threshold = await self._reached(db, rule, account_id, start_us, pico)
                if threshold is not None:
                    of = f"window/{start_us}"
                    fired.append(Fired(rule, account_id, of, pico, threshold, start_us))
        await db.executemany(
            "UPDATE alert_window SET told = true"
            " WHERE rule_id = $1 AND account_id = $2 AND window_start_us = $3",
            [(one.rule.id, one.account_id, one.window_start_us) for one in fired],
        )
        return fired, {account_id: pico for account_id, (_, pico) in newest.items()}

    async def _reached(
        self, db: Any, rule: Rule, account_id: str, start_us: int, pico: int
    ) -> int | None:
        """What a window's sum came up to, or None when it did not."""
        least_pico = rule.amount or 0
        if rule.kind == "spent":
            return least_pico if pico >= least_pico else None
        if rule.window is None or rule.times is None or pico < least_pico:
            return None
        starts = windows.windows_before(rule.window, rule.time_zone, start_us, alerting.SPIKE_BASE)
        rows = await db.fetch(
            "SELECT amount_pico FROM alert_window WHERE rule_id = $1 AND account_id = $2"
            " AND window_start_us = ANY($3)",
            rule.id,
            account_id,
            starts,
        )
        earlier = [int(row["amount_pico"]) for row in rows]
        if not alerting.is_spike(pico, earlier, rule.times, least_pico):
            return None
        return rule.times * sum(earlier) // alerting.SPIKE_BASE

    async def _levels(self, db: Any, step: Step, hours: dict[str, int]) -> list[Fired]:
        """What levels give."""
        rules = [rule for rule in self._rules.values() if rule.kind not in ("spent", "spike")]
        prefix = books.customer("")
        touched = {
            account.removeprefix(prefix)
            for account, _ in step.balances
            if account.startswith(prefix)
        }
        for _, effects in step.effects:
            # These may be of accounts that nobody made, under any text.
            waiting = (*effects.suspended, *effects.released)
            touched |= {escaped(one.event.account_id) for one in waiting}
            touched |= {terms.account_id for terms in effects.terms}
        if not rules or not touched:
            return []
        standings = await _standings(db, sorted(touched))
        rows = await db.fetch(
            "SELECT * FROM alert_level WHERE account_id = ANY($1)", list(standings)
        )
        levels = {
            (row["rule_id"], row["account_id"]): Level(row["is_over"], row["crossings"])
            for row in rows
        }
        fired: list[Fired] = []
        moved: list[tuple[str, str, bool, int]] = []
        for rule in rules:
            for account_id, standing in standings.items():
                burns = rule.kind == "burn_rate"
                # What an account burns is looked at when it spends.
                if not rule.covers(account_id) or (burns and account_id not in hours):
                    continue
                now = standing._replace(spent_pico=hours[account_id]) if burns else standing
                is_over, value, threshold = _is_over(rule, now)
                before = levels.get((rule.id, account_id), _new(rule))
                after, fires = alerting.crossed(before, is_over)
                if after != before or (rule.id, account_id) not in levels:
                    moved.append((rule.id, account_id, *after))
                if fires:
                    of = f"crossing/{after.crossings}"
                    fired.append(Fired(rule, account_id, of, value, threshold, None))
        await db.executemany(
            "INSERT INTO alert_level VALUES ($1, $2, $3, $4) ON CONFLICT (rule_id, account_id)"
            " DO UPDATE SET is_over = excluded.is_over, crossings = excluded.crossings",
            moved,
        )
        return fired

    async def _raise(self, db: Any, step: Step, fired: list[Fired]) -> None:
        if not fired:
            return
        rows = await db.fetch(
            "SELECT account_id, currency FROM account WHERE account_id = ANY($1)",
            sorted({one.account_id for one in fired}),
        )
        currencies = {row["account_id"]: row["currency"] for row in rows}
        told = await self._takers(db)
        at = {name: str(end) for name, (_, end) in sorted(step.moves.items())}
        for one in fired:
            alert_id = alerting.alert_id(one.rule.id, one.account_id, one.of)
            body = _body(alert_id, one, currencies.get(one.account_id, ""), at)
            made = await db.fetchval(
                "INSERT INTO alert (alert_id, rule_id, account_id, body) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (alert_id) DO NOTHING RETURNING 1",
                alert_id,
                one.rule.id,
                one.account_id,
                body,
            )
            if made is not None:
                await db.executemany(
                    "INSERT INTO alert_delivery (alert_id, webhook) VALUES ($1, $2)",
                    [(alert_id, name) for name in told],
                )

    async def _takers(self, db: Any) -> list[str]:
        """The webhooks whose queues are not full."""
        rows = await db.fetch(
            "SELECT webhook, count(*) AS waiting FROM alert_delivery WHERE done_at IS NULL"
            " GROUP BY 1"
        )
        full = {row["webhook"] for row in rows if row["waiting"] >= MAX_UNDELIVERED}
        for name in full & set(self._webhooks):
            log.error("alerts are not sent: too many wait", webhook=name, most=MAX_UNDELIVERED)
        return [name for name in self._webhooks if name not in full]


def _new(rule: Rule) -> Level:
    """The level of an account that nothing is known of: credit has to come before it can fall."""
    return alerting.NEW if rule.kind in ("balance_below", "spendable_below") else Level(False, 0)


def _spend(spent: _Windows, rule: Rule, account_id: str, minute_us: int, pico: int) -> None:
    """Add a minute's charges to a rule's window."""
    if rule.span is not None:
        start_us = windows.window_start_us(rule.span, rule.time_zone, minute_us)
        key = rule.id, account_id, start_us
        spent[key] = spent.get(key, 0) + pico


def _is_over(rule: Rule, standing: Standing) -> tuple[bool, int, int]:
    """(whether an account is on the bad side of a rule's level, its value, the level)"""
    spendable_pico = standing.balance_pico + standing.credit_limit_pico
    amount_pico = rule.amount or 0
    if rule.kind == "balance_below":
        return standing.balance_pico < amount_pico, standing.balance_pico, amount_pico
    if rule.kind == "spendable_below":
        return spendable_pico < amount_pico, spendable_pico, amount_pico
    if rule.kind == "suspense":
        least = rule.entries or 1
        return standing.waiting >= least, standing.waiting, least
    hours = rule.hours or 1
    is_fast = alerting.is_fast(spendable_pico, standing.spent_pico, hours)
    return is_fast, spendable_pico, standing.spent_pico * hours


async def _standings(db: Any, account_ids: list[str] | None) -> dict[str, Standing]:
    """Accounts as they are now; None: all."""
    return {
        row["account_id"]: Standing(
            int(row["balance"]),
            int(row["credit_limit_pico"]),
            row["waiting"],
        )
        for row in await db.fetch(_STANDINGS, account_ids)
    }


def _body(alert_id: str, one: Fired, currency: str, at: dict[str, str]) -> bytes:
    """What is sent: an object as Standard Webhooks has it, money as decimal strings."""
    is_money = one.rule.kind != "suspense"
    data: dict[str, Any] = {
        "alert_id": alert_id,
        "rule": one.rule.id,
        "account_id": one.account_id,
        "currency": currency if is_money else "",
        "value_pico" if is_money else "value": str(one.value),
        "threshold_pico" if is_money else "threshold": str(one.threshold),
        "positions": at,
    }
    if one.window_start_us is not None:
        data["window"] = one.rule.window
        data["window_start"] = _instant(one.window_start_us)
        data["time_zone"] = one.rule.time_zone
    made = {
        "type": f"tollbook.alert.{one.rule.kind}",
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": data,
    }
    return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()


def _instant(at_us: int) -> str:
    seconds, micros = divmod(at_us, 1_000_000)
    made = datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)
    return made.isoformat().replace("+00:00", "Z")
