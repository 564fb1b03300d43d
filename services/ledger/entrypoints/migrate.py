"""`python -m ledger.entrypoints.migrate`: role and schema, brought up to date once."""

from __future__ import annotations

import asyncio
import sys

import asyncpg
import structlog

from kernel import settings, telemetry
from kernel.migrations import MigrationError
from ledger.adapters.migrate import SCHEMA
from ledger.settings import MigrateSettings

log = structlog.get_logger()


def main() -> None:
    """Migrate; status 1 with one line when it cannot."""
    config = settings.load(MigrateSettings)
    telemetry.configure("ledger-migrate", config.log_level)
    try:
        version = asyncio.run(SCHEMA.migrate(config.postgres, config.ledger_db_password))
    except (OSError, TimeoutError, asyncpg.PostgresError, MigrationError) as error:
        sys.stderr.write(f"ledger.migrate: {error}\n")
        raise SystemExit(1) from None
    log.info("migrated", schema=SCHEMA.name, version=version)


if __name__ == "__main__":
    main()
