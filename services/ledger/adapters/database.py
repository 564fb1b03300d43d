"""Connections of the role tollbook_ledger: with limits, and waited for while there is none."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg
import structlog

from kernel import dsn as dsns
from kernel.errors import FailedPrecondition, Unavailable
from ledger.adapters.migrate import SCHEMA

log = structlog.get_logger()

CONNECT_TIMEOUT_S: Final = 5
COMMAND_TIMEOUT_S: Final = 30
SETTING: Final = "TOLLBOOK_LEDGER_POSTGRES"
_RETRY_S: Final = 0.25

# A database that is away, restarting, or that dropped the connection: try again.
AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # Raised on giving back a connection whose server died in the middle of a statement. To take
    # it for "away" is safe: the answer is always to throw away what is in memory and ask again.
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
)


async def connect(
    dsn: str, application: str = "tollbook-ledger", command_timeout_s: float = COMMAND_TIMEOUT_S
) -> Any:
    """Open one connection. Errors: those of AWAY, asyncpg's own."""
    return await asyncpg.connect(
        dsn,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=command_timeout_s,
        server_settings={"search_path": "ledger", "application_name": application},
    )


async def connect_once(dsn: str, application: str, command_timeout_s: float) -> Any:
    """As `connect`, for a command that somebody waits for: it is told what is wrong, and of what.

    Errors: FailedPrecondition (no DSN, or the server refuses this one), Unavailable.
    """
    try:
        with dsns.refusals(SETTING, AWAY):
            return await connect(dsns.check(dsn), application, command_timeout_s)
    except ValueError as error:
        raise FailedPrecondition(
            f"the ledger's database cannot be asked: in --postgres or {SETTING}, {error}",
            reason="DSN_UNUSABLE",
        ) from None
    except AWAY as error:
        raise Unavailable(f"the database does not answer: {error}") from None


async def _as_it_is(connection: Any) -> None:
    """Give a connection back without a round trip: nothing here leaves anything in a session.

    No SET, LISTEN, lock or cursor outlives its transaction, and a connection that failed is not
    taken again, so there would be nothing to reset, once for every batch.
    """


async def open_pool(dsn: str, max_size: int, stopped: asyncio.Event) -> Any:
    """Open a pool on a schema of this version; None when stopped while waiting for the server.

    Errors: MigrationError on a schema of another version, FailedPrecondition on a wrong password
    or option, or a missing database.
    """
    said = False
    while not stopped.is_set():
        try:
            with dsns.refusals(SETTING, AWAY):
                pool = await asyncpg.create_pool(
                    dsn,
                    min_size=1,
                    max_size=max_size,
                    timeout=CONNECT_TIMEOUT_S,
                    command_timeout=COMMAND_TIMEOUT_S,
                    reset=_as_it_is,
                    server_settings={
                        "search_path": "ledger",
                        "application_name": "tollbook-ledger",
                    },
                )
        except AWAY as error:
            if not said:
                log.warning("database away", error=str(error))
                said = True
            await asyncio.sleep(_RETRY_S)
            continue
        await SCHEMA.check_version(pool)
        return pool
    return None
