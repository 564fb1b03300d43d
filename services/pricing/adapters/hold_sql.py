"""The tables of holds: what one batch of a shard reads and writes, all under the shard's lock.

Rows of holds are locked by others too, the projector that charges: nothing
here ever waits for such a row (SKIP LOCKED), so that the two never wait for
each other. One that is locked is being charged, released or ended, and gone
for us.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pricing.domain.credits import Charge, Lot
from pricing.domain.holds import Held, Standing
from pricing.domain.state import Limit

SHARDS: Final = 16
IDLE_MS: Final = 2_000


class Open(NamedTuple):
    """An open hold as it stands in its row."""

    hold_id: str
    account_id: str
    project_id: str
    key_id: str
    amount_pico: int
    event_time_us: int
    expires_us: int


class Snapshot(NamedTuple):
    """What a batch is decided by."""

    now_us: int
    standings: dict[str, Standing]
    open: dict[str, Open]
    """Of the holds asked for, those that are open, by hold_id."""
    charged: set[str]
    """Of the holds asked for, those whose event is charged, by hold_id."""


async def lock(db: Any, shard: int) -> None:
    """Begin a transaction as the shard's one writer; waits for the one before.

    A server that is paused in the middle of it keeps the shard no longer than IDLE_MS.
    """
    # One statement text, so that it is one round trip; the numbers are ours.
    await db.execute(
        f"BEGIN; SET LOCAL idle_in_transaction_session_timeout = {IDLE_MS:d};"  # noqa: S608
        f" SELECT 1 FROM hold_shard WHERE shard = {shard:d} FOR UPDATE"
    )


async def over(db: Any) -> list[int]:
    """The shards in which some hold's time is over."""
    rows = await db.fetch(
        "SELECT shard FROM hold_shard s WHERE EXISTS (SELECT FROM hold h WHERE h.shard = s.shard"
        " AND h.expires_at <= statement_timestamp()) ORDER BY shard"
    )
    return [row["shard"] for row in rows]


async def end(db: Any, shard: int) -> int:
    """End the holds of a shard whose time is over, under its lock; gives how many they were."""
    ended: int = await db.fetchval("SELECT end_holds($1)", shard)
    return ended


# One statement, so one snapshot. Lots and charges are those of accounts with a lot that ends or is
# for a project; elsewhere they change nothing.
_SNAPSHOT: Final = """
WITH lot AS (
  SELECT account_id, priority, expires_us, control_position, grant_id, project_id,
         amount_pico - coalesce(expired_pico, 0) AS amount_pico
  FROM credit_grant WHERE account_id = ANY($2::text[])
), special AS (
  SELECT DISTINCT account_id FROM lot
  WHERE expires_us <> 9223372036854775807 OR project_id <> ''
), edge AS (
  SELECT coalesce(array_agg(DISTINCT expires_us ORDER BY expires_us), '{0}') AS all_us
  FROM lot JOIN special USING (account_id)
), bound AS (
  SELECT * FROM spend_limit WHERE account_id = ANY($2::text[])
)
SELECT json_build_object(
  'now', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
  'over', EXISTS (SELECT FROM hold WHERE shard = $1 AND expires_at <= statement_timestamp()),
  'accounts', (SELECT json_agg(json_build_array(
      a.account_id, a.currency, a.credit_limit_pico::text, coalesce(b.amount_pico, 0)::text,
      (coalesce(r.amount_pico, 0) - coalesce(s.amount_pico, 0))::text))
    FROM account a
    LEFT JOIN balance b
      ON b.ledger_account = 'account:' || a.account_id AND b.currency = a.currency
    LEFT JOIN account_reserved r ON r.account_id = a.account_id
    LEFT JOIN account_settled s ON s.account_id = a.account_id
    WHERE a.account_id = ANY($2::text[])),
  'open', (SELECT json_agg(json_build_array(
      hold_id, account_id, project_id, key_id, amount_pico::text, event_time_us,
      (extract(epoch FROM expires_at) * 1000000)::bigint))
    FROM hold WHERE hold_id = ANY($3::text[])),
  'charged', (SELECT json_agg(DISTINCT encode(identity, 'hex'))
    FROM usage_event WHERE identity = ANY($4::bytea[])),
  'limits', (SELECT json_agg(json_build_array(control_position, limit_id, account_id, project_id,
      key_id, span, time_zone, amount_pico::text)) FROM bound),
  'lots', (SELECT json_agg(json_build_array(account_id, priority, expires_us, control_position,
      grant_id, project_id, amount_pico::text)) FROM lot JOIN special USING (account_id)),
  'holds', (SELECT json_agg(json_build_array(account_id, project_id, key_id, minute_us, amount))
    FROM (SELECT account_id, project_id, key_id,
                 event_time_us / 60000000 * 60000000 AS minute_us, sum(amount_pico)::text AS amount
          FROM hold WHERE account_id = ANY($2::text[]) GROUP BY 1, 2, 3, 4) h),
  'spent', (SELECT json_agg(json_build_array(s.limit_id, s.window_start_us, s.amount_pico::text))
    FROM limit_spent s JOIN bound USING (limit_id)
    WHERE bound.span = 'ever' OR s.window_start_us >= $5),
  'charges', (SELECT json_agg(json_build_array(account_id, project_id, at_us, amount))
    FROM (SELECT account_id, project_id, min(minute_us) AS at_us,
                 sum(amount_pico)::text AS amount
          FROM usage_minute JOIN special USING (account_id)
          GROUP BY account_id, project_id, width_bucket(minute_us, (SELECT all_us FROM edge))) c)
)::text
"""
# A month and more: the window that an event falls in begins no earlier, but for `ever`.
_WINDOW_REACH_US: Final = 33 * 86_400 * 1_000_000


async def snapshot(
    db: Any,
    shard: int,
    account_ids: Iterable[str],
    hold_ids: Sequence[str],
    earliest_us: int,
) -> Snapshot:
    """What the accounts and holds of a batch are like, after ending what is over.

    `earliest_us`: of the events that holds are asked for.
    """
    arguments = (
        shard,
        sorted(set(account_ids)),
        hold_ids,
        [bytes.fromhex(hold_id) for hold_id in hold_ids],
        max(0, earliest_us - _WINDOW_REACH_US),
    )
    found = json.loads(await db.fetchval(_SNAPSHOT, *arguments))
    if found["over"]:
        await end(db, shard)
        found = json.loads(await db.fetchval(_SNAPSHOT, *arguments))
    return Snapshot(
        found["now"],
        _standings(found),
        {row[0]: _open_of(row) for row in found["open"] or ()},
        set(found["charged"] or ()),
    )


def _standings(found: Mapping[str, Any]) -> dict[str, Standing]:
    """The accounts by their ids, with limits, lots, and what counts in them."""
    standings: dict[str, Standing] = {}
    for account_id, currency, credit_limit, balance, held in found["accounts"] or ():
        standings[account_id] = Standing(
            account_id, currency, int(balance), int(held), int(credit_limit)
        )
    spent = {(limit_id, start): int(amount) for limit_id, start, amount in found["spent"] or ()}
    for *limited, amount in found["limits"] or ():
        limit = Limit._make((*limited, int(amount)))
        mine = standings[limit.account_id]
        mine.limits = (*mine.limits, limit)
        mine.spent |= {key: pico for key, pico in spent.items() if key[0] == limit.limit_id}
    for account_id, *lot, amount in found["lots"] or ():
        mine = standings[account_id]
        mine.lots = (*mine.lots, Lot._make((*lot, int(amount))))
    for account_id, project_id, key_id, minute, amount in found["holds"] or ():
        standings[account_id].holds.append(Held(project_id, key_id, minute, int(amount)))
    for account_id, project_id, at_us, amount in found["charges"] or ():
        mine = standings[account_id]
        mine.charges = (*mine.charges, Charge(at_us, project_id, int(amount)))
    return standings


def _open_of(row: Sequence[Any]) -> Open:
    hold_id, account_id, project_id, key_id, amount_pico, event_time_us, expires_us = row
    return Open(
        hold_id, account_id, project_id, key_id, int(amount_pico), event_time_us, expires_us
    )


_MAKE: Final = """
WITH made AS (
  INSERT INTO hold
  SELECT id, $1, account, project, key, amount, event,
         to_timestamp(0) + ends * interval '1 microsecond'
  FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::numeric[], $7::bigint[],
              $8::bigint[]) AS asked (id, account, project, key, amount, event, ends)
)
INSERT INTO account_reserved
SELECT account, sum(amount) FROM unnest($3::text[], $6::numeric[]) AS asked (account, amount)
GROUP BY 1
ON CONFLICT (account_id)
DO UPDATE SET amount_pico = account_reserved.amount_pico + excluded.amount_pico
"""


async def make(db: Any, shard: int, holds: Sequence[Open]) -> None:
    """Write new holds."""
    await db.execute(
        _MAKE,
        shard,
        [hold.hold_id for hold in holds],
        [hold.account_id for hold in holds],
        [hold.project_id for hold in holds],
        [hold.key_id for hold in holds],
        [hold.amount_pico for hold in holds],
        [hold.event_time_us for hold in holds],
        [hold.expires_us for hold in holds],
    )


_EXTEND: Final = """
WITH mine AS (
  SELECT hold_id FROM hold WHERE hold_id = $1 FOR UPDATE SKIP LOCKED
), moved AS (
  UPDATE hold SET amount_pico = hold.amount_pico + $2,
    expires_at = to_timestamp(0) + $3::bigint * interval '1 microsecond'
  FROM mine WHERE hold.hold_id = mine.hold_id RETURNING hold.account_id
), more AS (
  UPDATE account_reserved r SET amount_pico = r.amount_pico + $2
  FROM moved WHERE r.account_id = moved.account_id
)
SELECT 1 FROM moved
"""


async def extend(db: Any, hold_id: str, more_pico: int, expires_us: int) -> bool:
    """Give a hold a new end and so much more; False when it is gone."""
    return await db.fetchval(_EXTEND, hold_id, more_pico, expires_us) is not None


async def open_holds(db: Any, account_id: str, limit: int) -> tuple[list[Open], int, int]:
    """(the holds that end first, what all keep, how many there are), from the caller's snapshot."""
    rows = await db.fetch(
        "SELECT hold_id, account_id, project_id, key_id, amount_pico, event_time_us,"
        " (extract(epoch FROM expires_at) * 1000000)::bigint AS expires_us"
        " FROM hold WHERE account_id = $1 ORDER BY expires_at, hold_id LIMIT $2",
        account_id,
        limit,
    )
    all_of = await db.fetchrow(
        "SELECT coalesce(sum(amount_pico), 0) AS held, count(*) AS holds FROM hold"
        " WHERE account_id = $1",
        account_id,
    )
    return [_open_of(tuple(row)) for row in rows], int(all_of["held"]), all_of["holds"]
