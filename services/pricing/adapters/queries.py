"""The projection's tables as answers read them: each answer from one snapshot.

Owns all SQL that only reads, and turning rows into the contract's messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pricing.domain import books
from pricing.domain.digest import balances_digest
from pricing.domain.identity import identity_of
from tollbook.pricing.v1 import control_pb2, money_pb2, pricing_pb2


class Snapshot(NamedTuple):
    """All of the projection that a cut or a list of balances speaks of."""

    positions: dict[str, int]
    balances: dict[books.BalanceKey, int]
    suspense: dict[str, int]

    def digest(self) -> bytes:
        """The digest of all balances (32 bytes)."""
        return balances_digest(self.balances, self.suspense)


async def positions(db: Any) -> dict[str, int]:
    """How far each log is applied."""
    rows = await db.fetch("SELECT log, size FROM log_position ORDER BY log")
    return {row["log"]: row["size"] for row in rows}


async def snapshot(db: Any) -> Snapshot:
    """Positions, balances and suspense, inside a REPEATABLE READ transaction of the caller."""
    at = await positions(db)
    rows = await db.fetch("SELECT ledger_account, currency, amount_pico FROM balance")
    balances = {(row["ledger_account"], row["currency"]): int(row["amount_pico"]) for row in rows}
    waiting = await db.fetch("SELECT account_id, count(*) AS entries FROM suspense GROUP BY 1")
    return Snapshot(at, balances, {row["account_id"]: row["entries"] for row in waiting})


def amount(currency: str, amount_pico: int) -> money_pb2.Amount:
    """An amount as the contract writes it."""
    return money_pb2.Amount(currency=currency, amount_pico=str(int(amount_pico)))


def positions_message(at: dict[str, int]) -> Iterable[pricing_pb2.LogPosition]:
    """Positions as the contract writes them."""
    return [pricing_pb2.LogPosition(log=log, size=size) for log, size in sorted(at.items())]


_BALANCES = """
SELECT a.account_id, a.currency,
       coalesce(mine.amount_pico, 0) AS available,
       -coalesce(given.amount_pico, 0) AS granted,
       coalesce(charged.amount_pico, 0) AS charged,
       coalesce(r.amount_pico, 0) - coalesce(d.amount_pico, 0) AS held,
       a.credit_limit_pico,
       coalesce(s.entries, 0) AS suspense_entries,
       coalesce(u.requests, 0) AS requests,
       coalesce(u.input_tokens, 0) AS input_tokens,
       coalesce(u.cached_tokens, 0) AS cached_tokens,
       coalesce(u.output_tokens, 0) AS output_tokens,
       coalesce(u.cache_write_tokens, 0) AS cache_write_tokens
FROM account a
LEFT JOIN balance mine
  ON mine.ledger_account = 'account:' || a.account_id AND mine.currency = a.currency
LEFT JOIN balance given
  ON given.ledger_account = 'granted:' || a.account_id AND given.currency = a.currency
LEFT JOIN balance charged
  ON charged.ledger_account = 'revenue:' || a.account_id AND charged.currency = a.currency
LEFT JOIN account_reserved r ON r.account_id = a.account_id
LEFT JOIN account_settled d ON d.account_id = a.account_id
LEFT JOIN account_usage u ON u.account_id = a.account_id
LEFT JOIN LATERAL (
  SELECT count(*) AS entries FROM suspense WHERE suspense.account_id = a.account_id
) s ON true
"""
_ONE_BALANCE = _BALANCES + "WHERE a.account_id = $1"
_SOME_BALANCES = _BALANCES + "WHERE a.account_id > $1 ORDER BY a.account_id LIMIT $2"


async def account_balance(db: Any, account_id: str) -> pricing_pb2.AccountBalance | None:
    """An account's balance, or None when there is no such account."""
    found = await db.fetchrow(_ONE_BALANCE, account_id)
    return None if found is None else _balance(found)


async def account_balances(db: Any, after: str, limit: int) -> list[pricing_pb2.AccountBalance]:
    """Balances of the accounts that come after one, in order of account_id."""
    return [_balance(row) for row in await db.fetch(_SOME_BALANCES, after, limit)]


def _balance(row: Any) -> pricing_pb2.AccountBalance:
    return pricing_pb2.AccountBalance(
        account_id=row["account_id"],
        available=amount(row["currency"], row["available"]),
        granted=amount(row["currency"], row["granted"]),
        charged=amount(row["currency"], row["charged"]),
        held=amount(row["currency"], row["held"]),
        credit_limit=amount(row["currency"], row["credit_limit_pico"]),
        suspense_entries=row["suspense_entries"],
        usage=pricing_pb2.UsageTotals(
            requests=row["requests"],
            input_tokens=row["input_tokens"],
            cached_tokens=row["cached_tokens"],
            output_tokens=row["output_tokens"],
            cache_write_tokens=row["cache_write_tokens"],
        ),
    )


async def account_exists(db: Any, account_id: str) -> bool:
    """Tell whether an account is known."""
    found = await db.fetchval("SELECT 1 FROM account WHERE account_id = $1", account_id)
    return found is not None


async def postings(db: Any, account_id: str, before: int, limit: int) -> list[pricing_pb2.Posting]:
    """An account's postings with ids below `before`, newest first."""
    rows = await db.fetch(
        "SELECT * FROM posting WHERE account_id = $1 AND posting_id < $2"
        " ORDER BY posting_id DESC LIMIT $3",
        account_id,
        before,
        limit,
    )
    return [_posting(row) for row in rows]


def _posting(row: Any) -> pricing_pb2.Posting:
    message = pricing_pb2.Posting(
        posting_id=row["posting_id"],
        debit_account=row["debit_account"],
        credit_account=row["credit_account"],
        amount=amount(row["currency"], row["amount_pico"]),
        log=row["log"],
        from_position=row["from_position"],
        to_position=row["to_position"],
        kind=row["kind"],
        line_id=row["line_id"],
        quantity=int(row["quantity"]),
        rule=row["rule"],
        period=row["period"],
    )
    if row["card_id"]:
        message.card.card_id = row["card_id"]
        message.card.version = row["card_version"]
        message.card.content_hash = row["card_hash"]
    return message


async def event_place(db: Any, account_id: str, event_id: str) -> tuple[str, int] | None:
    """(log, position) of an accepted event, or None."""
    row = await db.fetchrow(
        # Of two entries under one identity, which the ledger does not let happen, the first.
        "SELECT log, log_position FROM usage_event WHERE identity = $1"
        " ORDER BY log, log_position LIMIT 1",
        identity_of(account_id, event_id),
    )
    return (row["log"], row["log_position"]) if row else None


async def reached(db: Any, identities: Sequence[bytes]) -> tuple[dict[str, int], set[bytes]]:
    """How far each log is applied, and which of the events with these identities are."""
    at = await positions(db)
    if not identities:
        return at, set()
    rows = await db.fetch(
        "SELECT identity FROM usage_event WHERE identity = ANY($1::bytea[])", identities
    )
    return at, {row["identity"] for row in rows}


async def key_of_secret(db: Any, secret_digest: bytes) -> Any:
    """The key a secret belongs to, or None when unknown or revoked."""
    return await db.fetchrow(
        "SELECT key_id, account_id, project_id FROM api_key"
        " WHERE secret_digest = $1 AND revoked_position IS NULL",
        secret_digest,
    )


async def ignored_why(db: Any, log: str, position: int) -> str | None:
    """Why an entry was not applied, or None when it was."""
    why: str | None = await db.fetchval(
        "SELECT why FROM ignored_entry WHERE log = $1 AND log_position = $2", log, position
    )
    return why


async def conservation(db: Any) -> control_pb2.ConservationCut:
    """Output tokens over all engines: in events, by the engines' counters, in itemised waste."""
    row = await db.fetchrow(
        "SELECT coalesce(sum(event_tokens), 0)::bigint AS event_tokens,"
        " coalesce(sum(generation_tokens), 0)::bigint AS engine_tokens,"
        " coalesce(sum(waste_tokens), 0)::bigint AS waste_tokens FROM engine"
    )
    return control_pb2.ConservationCut(
        event_tokens=row["event_tokens"],
        engine_tokens=row["engine_tokens"],
        waste_tokens=row["waste_tokens"],
    )
