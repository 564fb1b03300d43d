"""`python -m ledger.entrypoints.seal`: what the policy gives up, sealed once and then detached."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys

import asyncpg
import structlog

from kernel import settings, telemetry
from kernel.migrations import MigrationError
from kernel.note import NoteError, VerifierKey
from ledger.adapters.archive import Archive, ArchiveError
from ledger.adapters.migrate import SCHEMA
from ledger.adapters.sealing import Policy, Result, Sealer, SealError, seal_due
from ledger.adapters.store import BrokenLogError
from ledger.settings import SealSettings

log = structlog.get_logger()


async def seal(config: SealSettings) -> list[Result]:
    """Seal what is due; gives what was sealed.

    Errors: SealError, ArchiveError, BrokenLogError for the first segment that must not be; those
    before it, and those of other logs, are sealed.
    """
    lines = config.verifier_keys.read_text().splitlines()
    keys = [VerifierKey.parse(line) for line in lines if line.strip()]
    policy = Policy(config.seal_keep_entries, dt.timedelta(hours=config.seal_older_than_h))
    pool = await asyncpg.create_pool(
        config.postgres,
        min_size=1,
        max_size=4,
        timeout=10,
        server_settings={"search_path": "ledger", "application_name": "tollbook-seal"},
    )
    try:
        await SCHEMA.check_version(pool)
        sealer = Sealer(pool, Archive(config.segments()), keys, config.origin)
        done, failed = await seal_due(sealer, pool, policy, config.seal_segments)
    finally:
        pool.terminate()
    if failed is not None:
        raise failed
    return done


def main() -> None:
    """Seal; status 1 with one line when something must not be sealed."""
    config = settings.load(SealSettings)
    telemetry.configure("ledger-seal", config.log_level)
    try:
        done = asyncio.run(seal(config))
    except (
        OSError,
        TimeoutError,
        asyncpg.PostgresError,
        NoteError,
        MigrationError,
        SealError,
        ArchiveError,
        BrokenLogError,
    ) as error:
        sys.stderr.write(f"ledger.seal: {error}\n")
        raise SystemExit(1) from None
    log.info("sealed all that is due", segments=len(done))


if __name__ == "__main__":
    main()
