"""One projector at a time: the others wait, and one that hangs is replaced.

The lease is an advisory lock of a database session, so it ends with the
session: a killed projector is followed at once. A session can outlive its
use, in a process that is paused or cut off; then the lease is not renewed,
and after STALE_MS the next one ends that session and takes over.

The lease keeps projectors from fighting; it is not what keeps the books
right. That is the epoch, which every write checks in its own transaction
(store.py): whoever was replaced and does not know it yet writes nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog

log = structlog.get_logger()

RENEW_MS: Final = 2_000
STALE_MS: Final = 15_000
_ASK_MS: Final = 250
_LOCK: Final = 0x746F6C6C_70726F6A  # "tollproj"


class LeaseLostError(RuntimeError):
    """The lease went to another; this projector must stop and wait again."""


async def acquire(db: Any) -> int:
    """Wait for the lease on this session. Gives the epoch: every earlier projector is fenced."""
    said = False
    while not await db.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
        if not said:
            log.info("another projector holds the lease; waiting")
            said = True
        await _end_stale(db)
        await asyncio.sleep(_ASK_MS / 1000)
    epoch: int = await db.fetchval(
        "UPDATE projector SET epoch = epoch + 1, backend_pid = pg_backend_pid(),"
        " renewed_at = clock_timestamp() RETURNING epoch"
    )
    return epoch


async def _end_stale(db: Any) -> None:
    ended = await db.fetchval(
        # The process id alone could by now be another session's: the lock names its holder.
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN projector p"
        " ON p.backend_pid = l.pid AND p.renewed_at < clock_timestamp() - $2 * interval '1 ms'"
        " WHERE l.locktype = 'advisory' AND l.granted"
        " AND (l.classid::bigint << 32) + l.objid::bigint = $1",
        _LOCK,
        STALE_MS,
    )
    if ended:
        log.error("the projector that held the lease hangs; its session was ended")


async def keep(db: Any, epoch: int) -> None:
    """Renew for ever; run it as a task. Errors: LeaseLostError, and the database's own."""
    while True:
        renewed = await db.fetchval(
            "UPDATE projector SET renewed_at = clock_timestamp() WHERE epoch = $1 RETURNING 1",
            epoch,
        )
        if renewed is None:
            raise LeaseLostError(f"epoch {epoch} is over")
        await asyncio.sleep(RENEW_MS / 1000)
