"""The projection's tables: what one step wrote and how far it came, in one transaction.

Owns all SQL that writes. Every write is fenced: the transaction begins by
checking the projector's epoch under a row lock, so a paused projector that
wakes after another took over changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pricing.adapters import bill_store, credit_store, month_store
from pricing.adapters.alert_store import Watch
from pricing.domain import books
from pricing.domain.state import Effects, Engine, Key, Limit, Suspended, Totals, Use, Used
from pricing.domain.text import escaped
from pricing.domain.windows import window_start_us


class FencedError(RuntimeError):
    """Another projector took over; this one must stop."""


class Step:
    """What a transaction writes: effects of several runs, summed, and the positions they reach."""

    def __init__(self) -> None:
        self.moves: dict[str, tuple[int, int]] = {}
        self.effects: list[tuple[str, Effects]] = []
        self.suspended: dict[tuple[str, int], Suspended] = {}
        self.released: list[tuple[str, int]] = []
        self.keys: dict[str, Key] = {}
        self.totals: dict[str, Totals] = {}
        self.engines: dict[str, Engine] = {}
        self.balances: dict[books.BalanceKey, int] = {}
        self.used: dict[Use, Used] = {}
        self.limits: dict[str, Limit] = {}
        self.spent: dict[tuple[str, int], int] = {}
        self.events = 0

    def add(self, log: str, first: int, end: int, effects: Effects) -> None:
        """Add the effects of the run [first, end) of a log."""
        began = self.moves.get(log, (first, first))[0]
        self.moves[log] = (began, end)
        self.effects.append((log, effects))
        self.events += len(effects.applied)
        for entry in effects.released:
            # Suspended and released within one step, it was never written.
            if self.suspended.pop(entry.place, None) is None:
                self.released.append(entry.place)
        for entry in effects.suspended:
            self.suspended[entry.place] = entry
        for key in effects.keys:
            self.keys[key.key_id] = key
        for account_id, totals in effects.totals.items():
            self.totals.setdefault(account_id, Totals()).add(totals)
        for engine_id, engine in effects.engines.items():
            self.engines.setdefault(engine_id, Engine()).add(engine)
        books.apply(self.balances, effects.postings)
        for use, more in effects.used.items():
            older = self.used.get(use)
            self.used[use] = (
                more if older is None else Used(*map(sum, zip(older, more, strict=True)))
            )
        for limit in effects.limits:
            self.limits[limit.limit_id] = limit

    def spend(self, limits_of: Callable[[str], Iterable[Limit]]) -> None:
        """Count what the step charged into the windows of the limits in force after it."""
        for use, used in self.used.items():
            if not used.amount_pico:
                continue
            for limit in limits_of(use.account_id):
                # One that the step itself set is counted anew from all there is.
                if limit.limit_id not in self.limits and limit.covers(use.project_id, use.key_id):
                    start_us = window_start_us(limit.window, limit.time_zone, use.minute_us)
                    key = limit.limit_id, start_us
                    self.spent[key] = self.spent.get(key, 0) + used.amount_pico


async def positions(db: Any) -> dict[str, int]:
    """How far each log is applied."""
    return {row["log"]: row["size"] for row in await db.fetch("SELECT log, size FROM log_position")}


async def suspended(db: Any) -> list[tuple[str, int, int, bytes]]:
    """(log, position, pin, leaf) of every event that waits for a price."""
    rows = await db.fetch(
        "SELECT log, log_position, control_size, leaf FROM suspense ORDER BY log, log_position"
    )
    return [tuple(row) for row in rows]


async def write(db: Any, epoch: int, step: Step, watch: Watch | None = None) -> None:
    """Commit a step, with the alerts that it raises.

    Errors: FencedError when another projector took over.
    """
    async with db.transaction():
        mine = await db.fetchval("SELECT epoch FROM projector FOR UPDATE")
        if mine != epoch:
            raise FencedError(f"epoch {epoch} is over: {mine} is the projector now")
        await _move(db, step)
        await _write_control(db, step)
        await _write_suspense(db, step)
        await _write_events(db, step)
        await _write_engines(db, step)
        await _write_balances(db, step)
        await _write_postings(db, step)
        await _write_totals(db, step)
        await month_store.write(
            db,
            (move for _, effects in step.effects for move in effects.meter_moves),
            (move for _, effects in step.effects for move in effects.month_moves),
        )
        await bill_store.write(db, (effects for _, effects in step.effects))
        await credit_store.write(db, step)
        if watch is not None:
            await watch.look(db, step)
        await db.execute("NOTIFY tollbook_pricing")


async def _copy(db: Any, table: str, records: Sequence[Any], columns: Sequence[str]) -> None:
    if records:
        await db.copy_records_to_table(
            table, schema_name="pricing", records=records, columns=columns
        )


async def _move(db: Any, step: Step) -> None:
    for log, (first, end) in step.moves.items():
        if first == 0:
            await db.execute(
                "INSERT INTO log_position VALUES ($1, 0) ON CONFLICT (log) DO NOTHING", log
            )
        moved = await db.fetchval(
            "UPDATE log_position SET size = $3 WHERE log = $1 AND size = $2 RETURNING 1",
            log,
            first,
            end,
        )
        if moved is None:
            raise FencedError(f"log {log} is not at {first}: another projector moved it")


async def _write_control(db: Any, step: Step) -> None:
    made = [effects for _, effects in step.effects]
    await _copy(
        db,
        "account",
        [
            (account.account_id, account.currency, account.display_name, account.position)
            for effects in made
            for account in effects.accounts
        ],
        ("account_id", "currency", "display_name", "control_position"),
    )
    if step.keys:
        await db.executemany(
            "INSERT INTO api_key VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key_id)"
            " DO UPDATE SET revoked_position = excluded.revoked_position",
            [
                (
                    key.key_id,
                    key.account_id,
                    key.project_id,
                    key.secret_digest,
                    key.position,
                    key.revoked_position,
                )
                for key in step.keys.values()
            ],
        )
    await _copy(
        db,
        "rate_card",
        [
            (card.card.card_id, card.version, card.content_hash, card.position)
            for effects in made
            for card in effects.cards
        ],
        ("card_id", "version", "content_hash", "control_position"),
    )
    await _copy(
        db,
        "credit_grant",
        [
            (
                grant.grant_id,
                grant.account_id,
                grant.amount_pico,
                grant.position,
                grant.priority,
                grant.expires_us,
                grant.project_id,
            )
            for effects in made
            for grant in effects.grants
        ],
        (
            "grant_id",
            "account_id",
            "amount_pico",
            "control_position",
            "priority",
            "expires_us",
            "project_id",
        ),
    )
    await _copy(
        db,
        "ignored_entry",
        [
            (entry.log, entry.position, escaped(entry.why))
            for effects in made
            for entry in effects.ignored
        ],
        ("log", "log_position", "why"),
    )


async def _write_suspense(db: Any, step: Step) -> None:
    if step.released:
        await db.execute(
            "DELETE FROM suspense s USING unnest($1::text[], $2::bigint[]) AS gone (log, at)"
            " WHERE s.log = gone.log AND s.log_position = gone.at",
            [log for log, _ in step.released],
            [position for _, position in step.released],
        )
    await _copy(
        db,
        "suspense",
        [
            (*place, escaped(entry.event.account_id), entry.pin, entry.raw)
            for place, entry in step.suspended.items()
        ],
        ("log", "log_position", "account_id", "control_size", "leaf"),
    )


async def _write_events(db: Any, step: Step) -> None:
    await _copy(
        db,
        "usage_event",
        [
            (identity, log, position)
            for log, effects in step.effects
            for position, identity in effects.applied.places()
        ],
        ("identity", "log", "log_position"),
    )


async def _write_engines(db: Any, step: Step) -> None:
    if step.engines:
        await db.executemany(
            "INSERT INTO engine VALUES ($1, $2, $3, $4, $5) ON CONFLICT (engine_id) DO UPDATE"
            " SET event_tokens = engine.event_tokens + excluded.event_tokens,"
            " generation_tokens = greatest(engine.generation_tokens, excluded.generation_tokens),"
            " waste_tokens = greatest(engine.waste_tokens, excluded.waste_tokens),"
            " final = engine.final OR excluded.final",
            [
                (
                    escaped(engine_id),
                    engine.event_tokens,
                    engine.generation_tokens,
                    engine.waste_tokens,
                    engine.final,
                )
                for engine_id, engine in sorted(step.engines.items())
            ],
        )


async def _write_balances(db: Any, step: Step) -> None:
    if not step.balances:
        return
    changes = sorted(step.balances.items())
    await db.execute(
        "INSERT INTO balance SELECT * FROM unnest($1::text[], $2::text[], $3::numeric[])"
        " ON CONFLICT (ledger_account, currency)"
        " DO UPDATE SET amount_pico = balance.amount_pico + excluded.amount_pico",
        [account for (account, _), _ in changes],
        [currency for (_, currency), _ in changes],
        [amount_pico for _, amount_pico in changes],
    )


def _customer_of(posting: books.Posting) -> str:
    """The account a posting is listed under: the customer's side of it."""
    prefix = books.customer("")
    side = posting.debit if posting.debit.startswith(prefix) else posting.credit
    return side.removeprefix(prefix)


_POSTING_COLUMNS = (
    "account_id",
    "kind",
    "debit_account",
    "credit_account",
    "currency",
    "amount_pico",
    "log",
    "from_position",
    "to_position",
    "card_id",
    "card_version",
    "card_hash",
    "line_id",
    "quantity",
    "rated_at_control",
    "rule",
    "period",
)


async def _write_postings(db: Any, step: Step) -> None:
    # A posting's own fields stand in the columns' order, after the account it is listed under.
    records = [
        (_customer_of(posting), *posting)
        for _, effects in step.effects
        for posting in effects.postings
    ]
    await _copy(db, "posting", records, _POSTING_COLUMNS)


async def _write_totals(db: Any, step: Step) -> None:
    if not step.totals:
        return
    await db.executemany(
        "INSERT INTO account_usage VALUES ($1, $2, $3, $4, $5, $6)"
        " ON CONFLICT (account_id) DO UPDATE SET"
        " requests = account_usage.requests + excluded.requests,"
        " input_tokens = account_usage.input_tokens + excluded.input_tokens,"
        " cached_tokens = account_usage.cached_tokens + excluded.cached_tokens,"
        " output_tokens = account_usage.output_tokens + excluded.output_tokens,"
        " cache_write_tokens = account_usage.cache_write_tokens + excluded.cache_write_tokens",
        [
            (
                escaped(account_id),
                totals.requests,
                totals.input_tokens,
                totals.cached_tokens,
                totals.output_tokens,
                totals.cache_write_tokens,
            )
            for account_id, totals in sorted(step.totals.items())
        ],
    )
