"""The tables of what is billed: written with a step, read back at a start and for statements."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

from pricing.adapters.known_rows import KnownRows
from pricing.adapters.together import Together, columns
from pricing.domain.projection import Projection
from pricing.domain.state import Billed, BillKey, Effects, Origin
from pricing.domain.text import digest_of_parts

_SUMS: Final = """
INSERT INTO bill_sum
SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
    $7::int[], $8::text[], $9::text[], $10::text[], $11::text[], $12::int[],
    $13::text[]::numeric[], $14::text[]::numeric[])
ON CONFLICT (bill_digest) DO UPDATE SET
    units = bill_sum.units + excluded.units,
    amount_pico = bill_sum.amount_pico + excluded.amount_pico
"""
_MORE: Final = """
UPDATE bill_sum b SET units = b.units + more.units, amount_pico = b.amount_pico + more.amount_pico
FROM unnest($1::bytea[], $2::text[]::numeric[], $3::text[]::numeric[])
    AS more (bill_digest, units, amount_pico)
WHERE b.bill_digest = more.bill_digest RETURNING 1
"""
_Row = tuple[str, BillKey, Origin]
_KEPT: Final = 16_384
"""Rows whose key is made once: step after step adds to the same sums, for a month."""


@lru_cache(maxsize=_KEPT)
def _key(row: _Row) -> tuple[bytes | str | int, ...]:
    account_id, key, origin = row
    factor = "" if key.factor is None else str(key.factor)
    texts = (account_id, *key[:6], factor, key.rule, *origin)
    return digest_of_parts(texts), *texts


def known_bills() -> KnownRows:
    """For the sums that a projector writes."""
    return KnownRows("bills_there", _SUMS, _MORE)


def write(together: Together, effects: Iterable[Effects], known: KnownRows) -> None:
    """Write what a step bills, with the rest of it; `known`: sums that it wrote before."""
    sums: dict[_Row, Billed] = {}
    eras: list[tuple[str, int, int]] = []
    for made in effects:
        eras += made.passed
        for account_id, key, origin, billed in made.billed:
            older = sums.get((account_id, key, origin))
            sums[account_id, key, origin] = billed if older is None else older.plus(billed)
    known.write(
        together,
        ((_key(row), (str(item.units), str(item.amount_pico))) for row, item in sums.items()),
    )
    if eras:
        together.add(
            "INSERT INTO log_era SELECT * FROM unnest($1::text[], $2::int[], $3::bigint[])",
            *columns(eras),
        )


def _put(rows: Iterable[Any], put: Callable[[str, BillKey, Origin, Billed], None]) -> None:
    for row in rows:
        key = BillKey(
            row["currency"],
            row["month"],
            row["card_id"],
            row["meter"],
            row["card_version"],
            row["line_id"],
            Fraction(row["factor"]) if row["factor"] else None,
            row["rule"],
        )
        origin = Origin(row["log"], row["era"])
        put(row["account_id"], key, origin, Billed(int(row["units"]), int(row["amount_pico"])))


async def put_account(
    db: Any, account_id: str, put: Callable[[str, BillKey, Origin, Billed], None]
) -> None:
    """Put an account's sums, as the database has them."""
    _put(await db.fetch("SELECT * FROM bill_sum WHERE account_id = $1", account_id), put)


async def eras(db: Any) -> list[tuple[str, int, int]]:
    """(log, era, first position) of every era that some log came to, in order."""
    rows = await db.fetch("SELECT log, era, first_position FROM log_era ORDER BY log, era")
    return [tuple(row) for row in rows]


async def restore(db: Any, projection: Projection) -> None:
    """Put every sum back, and come again to the verdicts that these gave."""
    _put(await db.fetch("SELECT * FROM bill_sum"), projection.restore_bill)
    for log, era, first_position in await eras(db):
        projection.restore_passed(log, era, first_position)
    projection.rejudge()
