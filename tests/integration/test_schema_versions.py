"""No process of either service works on a schema that is newer, or older, than it knows."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from tests.integration.free_port import free_port

from kernel.migrations import MigrationError, Schema
from kernel.note import SignerKey
from ledger.adapters.migrate import SCHEMA as LEDGER
from pricing.adapters.migrate import SCHEMA as PRICING
from tollbook.stack import Stack

pytestmark = pytest.mark.integration

WAIT_S = 120
NEWER = (
    "ledger.entrypoints.server",
    "ledger.entrypoints.worker",
    "ledger.entrypoints.signer",
    "ledger.entrypoints.seal",
    "pricing.entrypoints.server",
    "pricing.entrypoints.projector",
)
OLDER = ("ledger.entrypoints.signer", "pricing.entrypoints.server")


each = pytest.mark.parametrize(
    ("schema", "password"),
    [(LEDGER, "TOLLBOOK_LEDGER_DB_PASSWORD"), (PRICING, "TOLLBOOK_PRICING_DB_PASSWORD")],
    ids=lambda one: one.name if isinstance(one, Schema) else "",
)


@pytest.fixture
async def environment(ground: Stack, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """Settings of every process, on a database of its own with both schemas."""
    await asyncio.to_thread(ground.up)
    settings = {**os.environ, **ground.environment()}
    name = f"schemas_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(settings["TOLLBOOK_POSTGRES"])
    await admin.execute(f'CREATE DATABASE "{name}"')
    for setting in ("POSTGRES", "LEDGER_POSTGRES", "PRICING_POSTGRES"):
        parts = urlsplit(settings[f"TOLLBOOK_{setting}"])
        settings[f"TOLLBOOK_{setting}"] = urlunsplit(parts._replace(path=f"/{name}"))
    (tmp_path / "key").write_text(f"{SignerKey.generate('schemas')}\n")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "verifiers").write_text("")
    settings |= {
        "TOLLBOOK_HOME": str(tmp_path),
        "TOLLBOOK_SIGNER_KEY": str(tmp_path / "key"),
        "TOLLBOOK_VERIFIER_KEYS": str(tmp_path / "verifiers"),
    }
    where = settings["TOLLBOOK_POSTGRES"]
    await LEDGER.migrate(where, settings["TOLLBOOK_LEDGER_DB_PASSWORD"])
    await PRICING.migrate(where, settings["TOLLBOOK_PRICING_DB_PASSWORD"])
    try:
        yield settings
    finally:
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await admin.close()


async def ended(module: str, settings: dict[str, str]) -> tuple[int | None, str]:
    """Status and last line of a process that must end by itself."""
    addresses = {
        f"TOLLBOOK_{name}_ADDRESS": f"127.0.0.1:{free_port()}"
        for name in ("HEALTH", "LEDGER", "PRICING")
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        env={**settings, **addresses},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), WAIT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return None, f"{module} still runs"
    return process.returncode, said.decode().strip().splitlines()[-1]


async def test_every_process_refuses_a_newer_and_an_older_schema(
    environment: dict[str, str],
) -> None:
    db = await asyncpg.connect(environment["TOLLBOOK_POSTGRES"])
    try:
        for by, modules, word in ((100, NEWER, "newer"), (-101, OLDER, "migrate")):
            for service in ("ledger", "pricing"):
                await db.execute(f"UPDATE {service}.schema_version SET version = version + {by}")
            for status, line in await asyncio.gather(*(ended(one, environment) for one in modules)):
                assert status == 1, line
                assert word in line
                assert "schema" in line
        with pytest.raises(MigrationError):
            await LEDGER.check_version(db)
    finally:
        await db.close()


async def test_an_unknown_option_ends_the_process_and_the_setting_is_named(
    environment: dict[str, str],
) -> None:
    wrong = {"TOLLBOOK_PRICING_POSTGRES": environment["TOLLBOOK_PRICING_POSTGRES"] + "?sslmod=off"}
    modules = ("pricing.entrypoints.server", "pricing.entrypoints.projector")
    for status, line in await asyncio.gather(*(ended(one, environment | wrong) for one in modules)):
        assert status == 1, line
        assert "setting TOLLBOOK_PRICING_POSTGRES: the database refuses: " in line
        assert "sslmod" in line


@each
async def test_a_migration_of_an_older_release_leaves_a_newer_schema_alone(
    environment: dict[str, str], schema: Schema, password: str
) -> None:
    admin = environment["TOLLBOOK_POSTGRES"]
    db = await asyncpg.connect(admin)
    try:
        await db.execute(f"UPDATE {schema.name}.schema_version SET version = version + 100")
        before = await db.fetch(f"SELECT * FROM {schema.name}.schema_version")
        with pytest.raises(MigrationError, match="run the newer release"):
            await schema.migrate(admin, environment[password])
        assert await db.fetch(f"SELECT * FROM {schema.name}.schema_version") == before
    finally:
        await db.close()


@each
async def test_migrations_repeat_and_refuse_what_was_applied_with_another_text(
    environment: dict[str, str], schema: Schema, password: str, tmp_path: Path
) -> None:
    admin = environment["TOLLBOOK_POSTGRES"]
    assert await schema.migrate(admin, environment[password]) == len(schema.steps())
    others = tmp_path / "others"
    others.mkdir()
    for number, file in enumerate(sorted(schema.folder.glob("*.sql"))):
        (others / file.name).write_text(file.read_text() if number else "SELECT 1;")
    with pytest.raises(MigrationError, match="applied with another text"):
        await replace(schema, folder=others).migrate(admin, environment[password])


async def test_a_schema_of_a_release_that_kept_no_digests_goes_on(
    environment: dict[str, str],
) -> None:
    admin, password = environment["TOLLBOOK_POSTGRES"], environment["TOLLBOOK_PRICING_DB_PASSWORD"]
    newest = len(PRICING.steps())
    db = await asyncpg.connect(admin, server_settings={"search_path": "pricing"})
    try:
        await db.execute("ALTER TABLE schema_version DROP COLUMN digest")
        assert await PRICING.migrate(admin, password) == newest
        await PRICING.check_version(db)
        assert await db.fetchval("SELECT count(*) FROM schema_version") == newest
    finally:
        await db.close()
