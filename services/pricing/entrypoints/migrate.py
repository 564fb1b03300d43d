"""`python -m pricing.entrypoints.migrate`: make role and schema, once before the services start."""

from __future__ import annotations

import asyncio
import sys

import asyncpg
import structlog

from kernel import settings, telemetry
from kernel.migrations import MigrationError
from pricing.adapters.migrate import SCHEMA
from pricing.settings import MigrateSettings

log = structlog.get_logger()


def main() -> None:
    """Migrate, or say in one line why not and leave with status 1."""
    config = settings.load(MigrateSettings)
    telemetry.configure("pricing-migrate", config.log_level)
    try:
        version = asyncio.run(SCHEMA.migrate(config.postgres, config.pricing_db_password))
    except (OSError, TimeoutError, asyncpg.PostgresError, MigrationError) as error:
        sys.stderr.write(f"pricing.migrate: {error}\n")
        raise SystemExit(1) from None
    log.info("migrated", schema=SCHEMA.name, version=version)


if __name__ == "__main__":
    main()
