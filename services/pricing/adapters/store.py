"""The projection's tables: what one step wrote and how far it came, in one transaction.

Owns all SQL that writes. Every write is fenced: the transaction begins by
checking the projector's epoch under a row lock, so a paused projector that
wakes after another took over changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pricing.adapters import credit_store, event_rows, month_store
from pricing.adapters.alert_store import Watch
from pricing.adapters.step_rows import Gathered
from pricing.adapters.together import columns
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
        self.sent = asyncio.Event()
        """Set when most of it is on its way to the database, or when writing it has failed."""

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


async def write(
    db: Any, epoch: int, step: Step, gathered: Gathered, watch: Watch | None = None
) -> None:
    """Commit a step, with the alerts that it raises.

    What every step writes goes in one statement: each round trip is a wait for the processor
    on both sides. `gathered`: its rows, made anew for each try. Sets the step's `sent`: what
    the caller computes from then on costs no time, for the database works too. Errors: FencedError
    when another projector took over, RowsGoneError when the tables are not as it left them.
    """
    try:
        await _write(db, epoch, step, gathered, watch)
    finally:
        step.sent.set()


async def _write(db: Any, epoch: int, step: Step, gathered: Gathered, watch: Watch | None) -> None:
    together, copied = gathered
    async with db.transaction():
        found = await _move(db, epoch, step)
        await _write_control(db, step)
        await _write_suspense(db, step)
        await _copy_events(db, copied, step.sent)
        if found.holds:
            credit_store.settle_holds(together, step)
        # Whoever waits for it runs when this task waits, which is when the statement is sent.
        step.sent.set()
        await together.run(db)
        await month_store.write(
            db,
            (move for _, effects in step.effects for move in effects.meter_moves),
            (move for _, effects in step.effects for move in effects.month_moves),
        )
        await credit_store.write_rules(db, step, found.to_arm)
        if watch is not None:
            await watch.look(db, step)


async def _copy(db: Any, table: str, records: Sequence[Any], columns: Sequence[str]) -> None:
    if records:
        await db.copy_records_to_table(
            table, schema_name="pricing", records=records, columns=columns
        )


async def _copy_events(db: Any, pieces: Sequence[bytes], sent: asyncio.Event) -> None:
    """Copy rows of events; `sent` is set when the database has them all to work on."""

    async def told() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        sent.set()

    if pieces:
        await db.copy_to_table(
            "usage_event",
            schema_name="pricing",
            source=told(),
            columns=event_rows.COLUMNS,
            format="binary",
        )


_MOVE = """
WITH mine AS (SELECT epoch FROM projector FOR UPDATE),
asked AS (
    SELECT m.* FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS m (log, first, size), mine
    WHERE mine.epoch = $4
), moved AS (
    UPDATE log_position p SET size = a.size FROM asked a
    WHERE p.log = a.log AND p.size = a.first AND a.first > 0 RETURNING 1
), begun AS (
    INSERT INTO log_position SELECT log, size FROM asked WHERE first = 0
    ON CONFLICT (log) DO UPDATE SET size = excluded.size WHERE log_position.size = 0 RETURNING 1
)
SELECT mine.epoch, (SELECT count(*) FROM moved) + (SELECT count(*) FROM begun) AS moved,
    EXISTS (SELECT FROM hold) AS holds, EXISTS (SELECT FROM top_up_rule WHERE NOT armed) AS to_arm,
    pg_notify('tollbook_pricing', '')
FROM mine
"""


class _Found(NamedTuple):
    """What there is to look for in the tables."""

    holds: bool
    """Somebody holds something: not so in a rebuild."""
    to_arm: bool
    """A top-up rule has fired, and is armed again once its balance is not below."""


async def _move(db: Any, epoch: int, step: Step) -> _Found:
    """Move the positions under the projector's lock, and have whoever waits for news told of it
    when the transaction commits. Errors: FencedError.
    """
    places = [(log, first, end) for log, (first, end) in sorted(step.moves.items())]
    row = await db.fetchrow(_MOVE, *(columns(places) or ([], [], [])), epoch)
    if row["epoch"] != epoch:
        raise FencedError(f"epoch {epoch} is over: {row['epoch']} is the projector now")
    if row["moved"] != len(places):
        raise FencedError(f"one of {places} is not at its first: another projector moved it")
    return _Found(row["holds"], row["to_arm"])


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
