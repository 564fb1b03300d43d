"""Forward-only migrations of the schema `ledger`: numbered SQL files, all in one transaction.

A schema newer than this code is refused untouched. A file once released is
never changed: its SHA-256 is kept, and a file that differs is refused too.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg

SCHEMA: Final = "ledger"
ROLE: Final = "tollbook_ledger"
FILES: Final = Path(__file__).parent / "migrations"
_NAME: Final = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_LOCK: Final = 0x6C656467  # "ledg": two migrations at once wait for each other


class MigrationError(RuntimeError):
    """A schema that this version must not touch."""


class Migration(NamedTuple):
    """One step of the schema."""

    version: int
    sql: str

    @property
    def digest(self) -> bytes:
        """SHA-256 of its text."""
        return hashlib.sha256(self.sql.encode()).digest()


def read_migrations(folder: Path = FILES) -> list[Migration]:
    """All steps, in order. Errors: MigrationError unless they are numbered 1, 2, 3, ..."""
    found: list[Migration] = []
    for file in sorted(folder.glob("*.sql")):
        match = _NAME.match(file.name)
        if match is None or int(match[1]) != len(found) + 1:
            raise MigrationError(
                f"{file.name} does not follow migration {len(found)}: name it"
                f" {len(found) + 1:04d}_WHAT_IT_DOES.sql"
            )
        found.append(Migration(len(found) + 1, file.read_text()))
    return found


async def _ensure_role(db: Any, password: str) -> None:
    # CREATE ROLE takes no parameters, so the server quotes the password itself.
    quoted = await db.fetchval("SELECT quote_literal($1::text)", password)
    known = await db.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", ROLE)
    verb = "ALTER" if known else "CREATE"
    await db.execute(f"{verb} ROLE {ROLE} LOGIN PASSWORD {quoted}")


async def migrate(dsn: str, password: str, folder: Path = FILES) -> int:
    """Bring role and schema up to date; gives the schema's version.

    Errors: MigrationError when the schema is newer than this code or was made
    by other files.
    """
    steps = read_migrations(folder)
    db = await asyncpg.connect(dsn, timeout=10)
    try:
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await _ensure_role(db, password)
            await db.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            await db.execute(f"SET LOCAL search_path = {SCHEMA}")
            await db.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (version int PRIMARY KEY,"
                " digest bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            applied = {
                row["version"]: row["digest"]
                for row in await db.fetch("SELECT version, digest FROM schema_version")
            }
            _check(applied, steps)
            for step in steps:
                if step.version not in applied:
                    await db.execute(step.sql)
                    await db.execute(
                        "INSERT INTO schema_version VALUES ($1, $2)", step.version, step.digest
                    )
            await db.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {ROLE}")
            await db.execute(f"GRANT SELECT ON schema_version TO {ROLE}")
    finally:
        await db.close()
    return len(steps)


def _check(applied: dict[int, bytes], steps: list[Migration]) -> None:
    newest = max(applied, default=0)
    if newest > len(steps):
        raise MigrationError(
            f"schema {SCHEMA} has version {newest}, this code knows {len(steps)}:"
            " run the newer release"
        )
    for step in steps:
        if applied.get(step.version, step.digest) != step.digest:
            raise MigrationError(
                f"migration {step.version} of schema {SCHEMA} was applied with another text:"
                " released migrations never change, add a new one"
            )


async def check_version(db: Any) -> None:
    """Refuse to work on a schema of another version. Errors: MigrationError."""
    try:
        newest = await db.fetchval("SELECT max(version) FROM ledger.schema_version")
    except asyncpg.UndefinedTableError:
        newest = None
    known = len(read_migrations())
    if newest != known:
        raise MigrationError(
            f"schema {SCHEMA} has version {newest or 0}, this code needs {known}: run"
            " `python -m ledger.entrypoints.migrate` of this release first"
            if (newest or 0) < known
            else f"schema {SCHEMA} has version {newest}, this code knows {known}: run the newer"
            " release"
        )
