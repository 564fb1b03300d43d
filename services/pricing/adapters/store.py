"""The projection's tables: what one step wrote and how far it came, in one transaction.

Owns all SQL that writes. Every write is fenced: the transaction begins by
checking the projector's epoch under a row lock, so a paused projector that
wakes after another took over changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from pricing.adapters import bill_store, credit_store, month_store
from pricing.adapters.alert_store import Watch
from pricing.adapters.together import Together, columns, numbers
from pricing.domain import books
from pricing.domain.state import Effects, Engine, Key, Limit, Suspended, Totals, Use, Used
from pricing.domain.text import escaped
from pricing.domain.windows import window_start_us


class FencedError(RuntimeError):
    """Another projector took over; this one must stop."""


_Place = tuple[bytes, str, int]
"""Of an event: its identity, its log, its position there."""


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


class Gathered(NamedTuple):
    """What a step writes that depends on nothing in the database: made before its transaction."""

    together: Together
    """Most of it, as one statement."""
    copied: Sequence[_Place]
    """Places of events that are too many for it."""


class Known:
    """What the steps of one projector wrote so far."""

    def __init__(self) -> None:
        self.uses = credit_store.known_uses()
        self.bills = bill_store.known_bills()


def gather(step: Step, known: Known) -> Gathered:
    """Make the rows of a step, which must be written after those of the steps before it."""
    together = Together()
    copied = _write_events(together, step)
    _write_engines(together, step)
    _write_balances(together, step)
    _write_postings(together, step)
    _write_totals(together, step)
    bill_store.write(together, (effects for _, effects in step.effects), known.bills)
    credit_store.write(together, step, known.uses)
    return Gathered(together, copied)


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
        await _copy(db, "usage_event", copied, ("identity", "log", "log_position"))
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


_COPIED_FROM: Final = 2_000
"""From so many rows on, COPY's own round trips cost less than it saves: 1 to 2 us a row."""


def _write_events(together: Together, step: Step) -> Sequence[_Place]:
    """Gives the places that are to be copied instead."""
    places = [
        (identity, log, position)
        for log, effects in step.effects
        for position, identity in effects.applied.places()
    ]
    if len(places) >= _COPIED_FROM:
        return places
    if places:
        together.add(
            "INSERT INTO usage_event SELECT * FROM unnest($1::bytea[], $2::text[], $3::bigint[])",
            *columns(places),
        )
    return ()


def _write_engines(together: Together, step: Step) -> None:
    if step.engines:
        together.add(
            "INSERT INTO engine SELECT * FROM"
            " unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::boolean[])"
            " ON CONFLICT (engine_id) DO UPDATE"
            " SET event_tokens = engine.event_tokens + excluded.event_tokens,"
            " generation_tokens = greatest(engine.generation_tokens, excluded.generation_tokens),"
            " waste_tokens = greatest(engine.waste_tokens, excluded.waste_tokens),"
            " final = engine.final OR excluded.final",
            *columns(
                (
                    escaped(engine_id),
                    engine.event_tokens,
                    engine.generation_tokens,
                    engine.waste_tokens,
                    engine.final,
                )
                for engine_id, engine in sorted(step.engines.items())
            ),
        )


def _write_balances(together: Together, step: Step) -> None:
    if not step.balances:
        return
    changes = sorted(step.balances.items())
    together.add(
        "INSERT INTO balance SELECT * FROM unnest($1::text[], $2::text[], $3::text[]::numeric[])"
        " ON CONFLICT (ledger_account, currency)"
        " DO UPDATE SET amount_pico = balance.amount_pico + excluded.amount_pico",
        [account for (account, _), _ in changes],
        [currency for (_, currency), _ in changes],
        numbers(amount_pico for _, amount_pico in changes),
    )


def _customer_of(posting: books.Posting) -> str:
    """The account a posting is listed under: the customer's side of it."""
    prefix = books.customer("")
    side = posting.debit if posting.debit.startswith(prefix) else posting.credit
    return side.removeprefix(prefix)


_POSTINGS = """
INSERT INTO posting (account_id, kind, debit_account, credit_account, currency, amount_pico, log,
    from_position, to_position, card_id, card_version, card_hash, line_id, quantity,
    rated_at_control, rule, period)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],
    $6::text[]::numeric[], $7::text[], $8::bigint[], $9::bigint[], $10::text[], $11::int[],
    $12::bytea[], $13::text[], $14::bigint[], $15::bigint[], $16::text[], $17::text[])
"""


def _write_postings(together: Together, step: Step) -> None:
    postings = [posting for _, effects in step.effects for posting in effects.postings]
    if postings:
        # A posting's fields stand in the columns' order, after the account it is listed under.
        kind, debit, credit, currency, amounts, *rest = columns(postings)
        accounts = [_customer_of(posting) for posting in postings]
        amounts = numbers(amounts)
        together.add(_POSTINGS, accounts, kind, debit, credit, currency, amounts, *rest)


def _write_totals(together: Together, step: Step) -> None:
    if not step.totals:
        return
    together.add(
        "INSERT INTO account_usage SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[],"
        " $4::bigint[], $5::bigint[], $6::bigint[])"
        " ON CONFLICT (account_id) DO UPDATE SET"
        " requests = account_usage.requests + excluded.requests,"
        " input_tokens = account_usage.input_tokens + excluded.input_tokens,"
        " cached_tokens = account_usage.cached_tokens + excluded.cached_tokens,"
        " output_tokens = account_usage.output_tokens + excluded.output_tokens,"
        " cache_write_tokens = account_usage.cache_write_tokens + excluded.cache_write_tokens",
        *columns(
            (
                escaped(account_id),
                totals.requests,
                totals.input_tokens,
                totals.cached_tokens,
                totals.output_tokens,
                totals.cache_write_tokens,
            )
            for account_id, totals in sorted(step.totals.items())
        ),
    )
