"""Forward-only migrations of a service's schema: numbered SQL files, all in one transaction.

A schema newer than this code is refused untouched. A file once released is
never changed: its SHA-256 is kept, and a file that differs is refused too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg

_NAME: Final = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_CONNECT_TIMEOUT_S: Final = 10


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


@dataclass(frozen=True)
class Schema:
    """A service's schema, and the role that its processes log in as.

    `lock` is the advisory lock with which two migrations at once wait for each other, `rights`
    what the role may do beyond what the files themselves grant, told to the database each time.
    """

    name: str
    role: str
    folder: Path
    lock: int
    rights: Sequence[str]

    def steps(self) -> list[Migration]:
        """All steps, in order. Errors: MigrationError unless they are numbered 1, 2, 3, ... and
        there is one: without its files a release would take any database for one of its own.
        """
        found: list[Migration] = []
        for file in sorted(self.folder.glob("*.sql")):
            match = _NAME.match(file.name)
            if match is None or int(match[1]) != len(found) + 1:
                raise MigrationError(
                    f"{file.name} does not follow migration {len(found)}: name it"
                    f" {len(found) + 1:04d}_WHAT_IT_DOES.sql"
                )
            found.append(Migration(len(found) + 1, file.read_text()))
        if not found:
            raise MigrationError(
                f"{self.folder} has no migrations of schema {self.name}: this installation is not"
                " whole, install the release again"
            )
        return found

    async def migrate(self, dsn: str, password: str) -> int:
        """Bring role and schema up to date; gives the schema's version.

        Errors: MigrationError when the schema is newer than this code or was made by other files.
        """
        steps = self.steps()
        db = await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S)
        try:
            async with db.transaction():
                await db.execute("SELECT pg_advisory_xact_lock($1)", self.lock)
                await self._ensure_role(db, password)
                await db.execute(f"CREATE SCHEMA IF NOT EXISTS {self.name}")
                await db.execute(f"SET LOCAL search_path = {self.name}")
                await self._apply(db, steps)
                await db.execute(f"GRANT USAGE ON SCHEMA {self.name} TO {self.role}")
                for right in self.rights:
                    await db.execute(f"GRANT {right} TO {self.role}")
        finally:
            await db.close()
        return len(steps)

    async def _ensure_role(self, db: Any, password: str) -> None:
        # CREATE ROLE takes no parameters, so the server quotes the password itself.
        quoted = await db.fetchval("SELECT quote_literal($1::text)", password)
        known = await db.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", self.role)
        verb = "ALTER" if known else "CREATE"
        await db.execute(f"{verb} ROLE {self.role} LOGIN PASSWORD {quoted}")

    async def _apply(self, db: Any, steps: Sequence[Migration]) -> None:
        await db.execute(
            "CREATE TABLE IF NOT EXISTS schema_version"
            " (version int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        # Of its own, since pricing's schema kept no digests at first: what was applied then has
        # none, and is not held to any.
        await db.execute("ALTER TABLE schema_version ADD COLUMN IF NOT EXISTS digest bytea")
        rows = await db.fetch("SELECT version, digest FROM schema_version")
        applied: dict[int, bytes | None] = {row["version"]: row["digest"] for row in rows}
        self._check(applied, steps)
        for step in steps:
            if step.version not in applied:
                await db.execute(step.sql)
                await db.execute(
                    "INSERT INTO schema_version (version, digest) VALUES ($1, $2)",
                    step.version,
                    step.digest,
                )

    def _check(self, applied: Mapping[int, bytes | None], steps: Sequence[Migration]) -> None:
        newest = max(applied, default=0)
        if newest > len(steps):
            raise MigrationError(self._too_new(newest, len(steps)))
        for step in steps:
            if (applied.get(step.version) or step.digest) != step.digest:
                raise MigrationError(
                    f"migration {step.version} of schema {self.name} was applied with another"
                    " text: released migrations never change, add a new one"
                )

    async def check_version(self, db: Any) -> None:
        """Refuse to work on a schema of another version. Errors: MigrationError."""
        known = len(self.steps())
        try:
            newest = await db.fetchval(
                f"SELECT max(version) FROM {self.name}.schema_version"  # noqa: S608 - ours
            )
        except asyncpg.UndefinedTableError:
            newest = None
        if (newest or 0) < known:
            raise MigrationError(
                f"schema {self.name} has version {newest or 0}, this code needs {known}: run"
                f" `python -m {self.name}.entrypoints.migrate` of this release first"
            )
        if newest > known:
            raise MigrationError(self._too_new(newest, known))

    def _too_new(self, newest: int, known: int) -> str:
        return (
            f"schema {self.name} has version {newest}, this code knows {known}:"
            " run the newer release"
        )
