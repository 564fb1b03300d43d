"""What is said of all of the ledger's tables, and not of one log: guards, rows without a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tollbook.checking.verdict import Verdict

_GUARDED: Final = (
    "log_chunk",
    "log_tile",
    "log_pin",
    "checkpoint",
    "log_aside",
    "append_key",
    "log_exception",
    "log_segment",
    "log_detached",
)


async def check_triggers(db: Any, verdict: Verdict) -> None:
    """That the tables still refuse changes: a superuser may have switched it off."""
    rows = await db.fetch(
        "SELECT c.relname, count(*) FILTER (WHERE t.tgenabled = 'A') = 2 AS guarded"
        " FROM (SELECT to_regclass('ledger.' || name) AS root FROM unnest($1::text[]) name) g"
        " CROSS JOIN LATERAL ("
        "  SELECT g.root AS relid UNION SELECT relid FROM pg_partition_tree(g.root)) AS part"
        " JOIN pg_class c ON c.oid = part.relid"
        " LEFT JOIN pg_trigger t ON t.tgrelid = c.oid"
        "  AND t.tgname IN ('refuse_rows', 'refuse_truncate')"
        " GROUP BY c.relname ORDER BY c.relname",
        list(_GUARDED),
    )
    for name, guarded in rows:
        if not guarded:
            verdict.found(name, "its triggers against changes are switched off or gone")


async def check_rows_beyond(db: Any, verdict: Verdict, head: Any) -> None:
    """That no row holds what is beyond a log's head."""
    row = await db.fetchrow(
        "SELECT min(greatest(first_position, $2)) AS first,"
        " max(first_position + entries) AS end FROM log_chunk"
        " WHERE log_id = $1 AND first_position + entries > $2",
        head["log_id"],
        head["size"],
    )
    if row["first"] is not None:
        verdict.found(
            head["name"],
            f"rows of log_chunk hold it, and the head ends at {head['size']}: appended by hand",
            row["first"],
            row["end"],
        )


async def check_strangers(db: Any, verdict: Verdict, heads: Sequence[Any]) -> None:
    """That no row is of a log that has no head."""
    known = [head["log_id"] for head in heads]
    for table in ("log_chunk", "log_tile", "checkpoint", "log_pin"):
        rows = await db.fetch(
            f"SELECT DISTINCT log_id FROM {table} WHERE log_id <> ALL($1)",  # noqa: S608
            known,
        )
        for row in rows:
            verdict.found(table, f"it has rows of a log {row[0]} that has no head")
