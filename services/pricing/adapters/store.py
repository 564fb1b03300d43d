"""The projection's tables: what one step wrote and how far it came, in one transaction.

Owns all SQL that writes. Every write is fenced: the transaction begins by
checking the projector's epoch under a row lock, so a paused projector that
wakes after another took over changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import asyncpg

from pricing.domain import books
from pricing.domain.projection import Effects, Totals


class FencedError(RuntimeError):
    """Another projector took over; this one must stop."""


class Step:
    """What a transaction writes: effects of several runs and the positions they reach."""

    def __init__(self) -> None:
        self.effects: list[tuple[str, Effects]] = []
        self.moves: dict[str, tuple[int, int]] = {}

    def add(self, log: str, first: int, end: int, effects: Effects) -> None:
        """Add the effects of the run [first, end) of a log."""
        began = self.moves.get(log, (first, first))[0]
        self.moves[log] = (began, end)
        self.effects.append((log, effects))


async def connect(dsn: str) -> Any:
    """Open a connection with the schema on its path."""
    return await asyncpg.connect(dsn, server_settings={"search_path": "pricing"}, timeout=10)


async def take_over(db: Any) -> int:
    """Become the projector: every earlier one is fenced. Gives the epoch."""
    epoch: int = await db.fetchval("UPDATE projector SET epoch = epoch + 1 RETURNING epoch")
    return epoch


async def positions(db: Any) -> dict[str, int]:
    """How far each log is applied."""
    return {row["log"]: row["size"] for row in await db.fetch("SELECT log, size FROM log_position")}


async def suspended(db: Any) -> list[tuple[str, int]]:
    """(log, position) of every event that waits for a price."""
    rows = await db.fetch("SELECT log, log_position FROM suspense ORDER BY log, log_position")
    return [(row["log"], row["log_position"]) for row in rows]


async def write(db: Any, epoch: int, step: Step) -> None:
    """Commit a step. Errors: FencedError when another projector took over."""
    async with db.transaction():
        mine = await db.fetchval("SELECT epoch FROM projector FOR UPDATE")
        if mine != epoch:
            raise FencedError(f"epoch {epoch} is over: {mine} is the projector now")
        await _move(db, step)
        for log, effects in step.effects:
            await _write_control(db, effects)
            await _write_usage(db, log, effects)
        await _write_money(db, [effects for _, effects in step.effects])
        await db.execute("NOTIFY tollbook_pricing")


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


async def _write_control(db: Any, effects: Effects) -> None:
    for account in effects.accounts:
        await db.execute(
            "INSERT INTO account VALUES ($1, $2, $3, $4)",
            account.account_id,
            account.currency,
            account.display_name,
            account.position,
        )
    for key in effects.keys:
        await db.execute(
            # A revoked key's id may come again with another secret.
            "INSERT INTO api_key VALUES ($1, $2, $3, $4, $5) ON CONFLICT (key_id) DO UPDATE"
            " SET account_id = excluded.account_id, project_id = excluded.project_id,"
            " secret_digest = excluded.secret_digest,"
            " control_position = excluded.control_position, revoked = false",
            key.key_id,
            key.account_id,
            key.project_id,
            key.secret_digest,
            key.position,
        )
    for key_id in effects.revoked:
        await db.execute("UPDATE api_key SET revoked = true WHERE key_id = $1", key_id)
    for card in effects.cards:
        await db.execute(
            "INSERT INTO rate_card VALUES ($1, $2, $3, $4)",
            card.card.card_id,
            card.version,
            card.content_hash,
            card.position,
        )
    for position, grant in effects.grants:
        await db.execute(
            "INSERT INTO credit_grant VALUES ($1, $2, $3, $4)",
            grant.grant_id,
            grant.account_id,
            int(grant.amount.amount_pico),
            position,
        )
    for ignored in effects.ignored:
        await db.execute(
            "INSERT INTO ignored_record VALUES ($1, $2)", ignored.position, ignored.why
        )


async def _write_usage(db: Any, log: str, effects: Effects) -> None:
    if effects.released:
        await db.executemany(
            "DELETE FROM suspense WHERE log = $1 AND log_position = $2",
            [(entry.log, entry.event.position) for entry in effects.released],
        )
    if effects.suspended:
        await db.executemany(
            "INSERT INTO suspense VALUES ($1, $2, $3)",
            [
                (entry.log, entry.event.position, entry.event.account_id)
                for entry in effects.suspended
            ],
        )
    if effects.events:
        await db.copy_records_to_table(
            "usage_event",
            schema_name="pricing",
            records=[
                (event.account_id, event.event_id, log, event.position) for event in effects.events
            ],
        )
    for engine_id, tokens in sorted(effects.engine_tokens.items()):
        await db.execute(
            "INSERT INTO engine (engine_id, event_tokens) VALUES ($1, $2)"
            " ON CONFLICT (engine_id) DO UPDATE"
            " SET event_tokens = engine.event_tokens + excluded.event_tokens",
            engine_id,
            tokens,
        )
    for reading in effects.readings:
        await db.execute(
            "INSERT INTO engine (engine_id, generation_tokens, waste_tokens, final)"
            " VALUES ($1, $2, $3, $4) ON CONFLICT (engine_id) DO UPDATE"
            " SET generation_tokens = excluded.generation_tokens,"
            " waste_tokens = excluded.waste_tokens, final = excluded.final",
            reading.engine_id,
            reading.generation_tokens,
            reading.waste_tokens,
            reading.final,
        )


def _customer_of(posting: books.Posting) -> str:
    """The account a posting is listed under: the customer side of it."""
    for side in (posting.debit, posting.credit):
        if side.startswith("account:"):
            return side.removeprefix("account:")
    return ""


async def _write_money(db: Any, effects: Iterable[Effects]) -> None:
    postings: list[books.Posting] = []
    totals: defaultdict[str, Totals] = defaultdict(Totals)
    for part in effects:
        postings.extend(part.postings)
        for account_id, more in part.totals.items():
            sums = totals[account_id]
            sums.requests += more.requests
            sums.input_tokens += more.input_tokens
            sums.cached_tokens += more.cached_tokens
            sums.output_tokens += more.output_tokens
            sums.cache_write_tokens += more.cache_write_tokens
    changes: dict[books.BalanceKey, int] = {}
    books.apply(changes, postings)
    if changes:
        await db.executemany(
            "INSERT INTO balance VALUES ($1, $2, $3) ON CONFLICT (ledger_account, currency)"
            " DO UPDATE SET amount_pico = balance.amount_pico + excluded.amount_pico",
            [(account, currency, pico) for (account, currency), pico in sorted(changes.items())],
        )
    if postings:
        await db.copy_records_to_table(
            "posting",
            schema_name="pricing",
            columns=[
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
            ],
            records=[
                (
                    _customer_of(posting),
                    posting.kind,
                    posting.debit,
                    posting.credit,
                    posting.currency,
                    posting.amount_pico,
                    posting.log,
                    posting.from_position,
                    posting.to_position,
                    posting.card_id,
                    posting.card_version,
                    posting.card_hash,
                    posting.line_id,
                    posting.quantity,
                    posting.control_position,
                )
                for posting in postings
            ],
        )
    if totals:
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
                    account_id,
                    sums.requests,
                    sums.input_tokens,
                    sums.cached_tokens,
                    sums.output_tokens,
                    sums.cache_write_tokens,
                )
                for account_id, sums in sorted(totals.items())
            ],
        )
