"""Listings over several pages that are all of one instant.

What a page token names is a snapshot that the database exported: as long as
some server keeps it, any server can read the next page from it. It is kept
for a while and no longer, since what it sees cannot be cleaned up meanwhile.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, NamedTuple

import asyncpg

from kernel import errors
from kernel.dsn import said
from pricing.adapters import database

KEEP_MS: Final = 60_000
MAX_KEPT: Final = 4
_TOKEN: Final = re.compile(r"(?P<snapshot>[0-9A-F]{8}-[0-9A-F]{8}-[0-9]{1,10})/(?P<after>.{1,64})")


class Page(NamedTuple):
    """Where a listing goes on: a snapshot's id, and the last name that was listed."""

    snapshot: str
    after: str

    def token(self) -> str:
        """The page as callers hand it back."""
        return f"{self.snapshot}/{self.after}"


def page_of(token: str) -> Page:
    """Read a page token. Errors: InvalidArgument."""
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise errors.InvalidArgument.of_field(
            "page_token", "take it from the answer", "page_token is not one of a previous answer"
        )
    return Page(found["snapshot"], found["after"])


async def enter(db: Any, snapshot: str) -> None:
    """See what a kept snapshot sees, in a transaction that has just begun.

    Errors: FailedPrecondition when it is not kept any more.
    """
    try:
        # It takes no parameters; page_of let nothing through that ends a quote.
        await db.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
    except (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError):
        raise errors.FailedPrecondition(
            f"a listing is kept for {KEEP_MS // 1000} s; begin again without page_token",
            reason="LISTING_OVER",
        ) from None


class Kept:
    """The snapshots that this server keeps for listings."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._keeping: set[asyncio.Task[None]] = set()

    async def keep(self, snapshot: str) -> str:
        """Keep what a snapshot sees that its exporter still has; gives the id to find it by.

        Errors: Unavailable when there are too many, or the database is away.
        """
        if len(self._keeping) >= MAX_KEPT:
            raise errors.Unavailable(
                f"{MAX_KEPT} long listings are under way; try again",
                reason="TOO_MANY_LISTINGS",
                retry_after_ms=1_000,
            )
        kept: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._keep(snapshot, kept))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        try:
            return await kept
        except database.AWAY as error:
            raise errors.Unavailable(
                f"the database does not answer: {said(error)}", reason="DATABASE_AWAY"
            ) from None

    async def _keep(self, snapshot: str, kept: asyncio.Future[str]) -> None:
        db: Any = None
        try:
            db = await database.connect(self._dsn)
            # Ended by the database too: this process may be killed, or stand still.
            await db.execute(f"SET idle_in_transaction_session_timeout = {KEEP_MS + 5_000}")
            await db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            await enter(db, snapshot)
            kept.set_result(await db.fetchval("SELECT pg_export_snapshot()"))
            await asyncio.sleep(KEEP_MS / 1000)
        except Exception as error:
            if kept.done():
                raise
            kept.set_exception(error)
        finally:
            if db is not None:
                db.terminate()
            if not kept.done():
                kept.cancel()
