"""Forward-only migrations of the schema `pricing`: numbered SQL files, each in one transaction."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import asyncpg

SCHEMA: Final = "pricing"
ROLE: Final = "tollbook_pricing"
_FILES: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 0x70726963  # "pric": two migrations at once wait for each other


class MigrationError(RuntimeError):
    """A schema that this version must not touch."""


def migrations() -> list[tuple[int, Path]]:
    """The numbered files, in order."""
    files = sorted(_FILES.glob("*.sql"))
    return [(int(file.name.split("_", 1)[0]), file) for file in files]


async def _ensure_role(db: Any, password: str) -> None:
    # CREATE ROLE takes no parameters, so the server quotes the password itself.
    quoted = await db.fetchval("SELECT quote_literal($1::text)", password)
    known = await db.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", ROLE)
    verb = "ALTER" if known else "CREATE"
    await db.execute(f"{verb} ROLE {ROLE} LOGIN PASSWORD {quoted}")


async def migrate(dsn: str, password: str) -> int:
    """Bring role and schema up to date and give the schema's version.

    Errors: MigrationError when the schema is newer than this code.
    """
    db = await asyncpg.connect(dsn)
    try:
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await _ensure_role(db, password)
            await db.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            await db.execute(f"SET LOCAL search_path = {SCHEMA}")
            await db.execute(
                "CREATE TABLE IF NOT EXISTS schema_version"
                " (version int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            version: int = await db.fetchval("SELECT coalesce(max(version), 0) FROM schema_version")
            known = migrations()
            if version > known[-1][0]:
                raise MigrationError(
                    f"schema {SCHEMA} has version {version}, this code knows {known[-1][0]}:"
                    " run the newer release"
                )
            for number, file in known:
                if number > version:
                    await db.execute(file.read_text())
                    await db.execute("INSERT INTO schema_version VALUES ($1)", number)
            await db.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {ROLE}")
            await db.execute(
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMA} TO {ROLE}"
            )
            await db.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO {ROLE}")
            return known[-1][0]
    finally:
        await db.close()


async def check_version(db: Any) -> None:
    """Refuse to work on a schema of another version. Errors: MigrationError."""
    try:
        version = await db.fetchval("SELECT max(version) FROM pricing.schema_version")
    except asyncpg.UndefinedTableError:
        version = None
    newest = migrations()[-1][0]
    if (version or 0) < newest:
        raise MigrationError(
            f"schema {SCHEMA} has version {version or 0}, this code needs {newest}: run"
            " `python -m pricing.entrypoints.migrate` of this release first"
        )
    if version > newest:
        raise MigrationError(
            f"schema {SCHEMA} has version {version}, this code knows {newest}: run the newer"
            " release"
        )


def redacted(dsn: str) -> str:
    """The DSN without its password, for messages."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", dsn)
