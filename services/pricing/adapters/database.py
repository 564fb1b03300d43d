"""Connections of the role tollbook_pricing: with limits, and waited for while there is none."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg
import structlog

from kernel.dsn import refusals, said
from pricing.adapters.migrate import SCHEMA

log = structlog.get_logger()

CONNECT_TIMEOUT_S: Final = 5
COMMAND_TIMEOUT_S: Final = 60
_RETRY_S: Final = 0.25
_MAX_QUERIES: Final = 10_000_000
"""Then another connection is made, which plans everything anew while callers wait."""
SETTING: Final = "TOLLBOOK_PRICING_POSTGRES"
_SETTINGS: Final = {"search_path": "pricing", "application_name": "tollbook-pricing"}

# A database that is away, restarting, or that dropped the connection: another moment may mend it.
AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # Raised on giving back a connection whose server died in the middle of a statement. To take
    # it for "away" is safe: what is in memory is thrown away and read again.
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    # This process stood still in the middle of a transaction, and the server did not wait for it.
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
)


async def connect(dsn: str) -> Any:
    """Open one connection with the schema on its path. Errors: those of AWAY, asyncpg's own.

    Its statements are planned each time, for tables as large as they are then: what joins a
    thousand rows to a small table would else go on reading all of it when it has grown.
    """
    return await asyncpg.connect(
        dsn,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        server_settings={**_SETTINGS, "plan_cache_mode": "force_custom_plan"},
    )


async def _as_it_is(db: Any) -> None:
    """Give a connection back as it is: nobody who borrows one here sets anything for a session, and
    the library rolls back what is open. Resetting it all the same was a round trip a use.
    """


async def open_pool(dsn: str, max_size: int, stopped: asyncio.Event) -> Any:
    """Open a pool on a schema of this version; None when stopped while waiting for the server.

    Errors: MigrationError on a schema of another version, FailedPrecondition on a wrong password
    or option, or a missing database.
    """
    while not stopped.is_set():
        pool: Any = None
        try:
            with refusals(SETTING, AWAY):
                pool = await asyncpg.create_pool(
                    dsn,
                    # No floor: a pool goes on about one that it cannot keep up.
                    min_size=0,
                    max_size=max_size,
                    timeout=CONNECT_TIMEOUT_S,
                    command_timeout=COMMAND_TIMEOUT_S,
                    server_settings=_SETTINGS,
                    max_queries=_MAX_QUERIES,
                    reset=_as_it_is,
                )
                await SCHEMA.check_version(pool)
        except AWAY as error:
            log.warning("database away", error=said(error))
            if pool is not None:
                pool.terminate()
            await asyncio.sleep(_RETRY_S)
        else:
            return pool
    return None
