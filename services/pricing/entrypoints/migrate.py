"""`python -m pricing.entrypoints.migrate`: make role and schema, once before the services start."""

from __future__ import annotations

import asyncio

import asyncpg
import structlog

from kernel import settings, telemetry
from pricing.adapters.migrate import MigrationError, migrate, redacted
from pricing.settings import MigrateSettings


def main() -> None:
    """Migrate, or say in one line why not and leave with status 1."""
    config = settings.load(MigrateSettings)
    telemetry.configure("pricing-migrate", config.log_level)
    log = structlog.get_logger()
    try:
        version = asyncio.run(migrate(config.postgres, config.pricing_db_password))
    except (OSError, asyncpg.PostgresError, MigrationError) as error:
        log.error("cannot migrate", postgres=redacted(config.postgres), error=str(error))
        raise SystemExit(1) from None
    log.info("schema is up to date", schema="pricing", version=version)


if __name__ == "__main__":
    main()
