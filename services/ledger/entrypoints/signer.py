"""`python -m ledger.entrypoints.signer`: signs checkpoints, with a key and a memory of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import structlog
import uvloop

from kernel import errors, grpcs, settings, telemetry, tlogpolicy
from kernel.migrations import MigrationError
from ledger.adapters import database, keys
from ledger.adapters.archive import Archive
from ledger.adapters.cosigning import Cosigners
from ledger.adapters.leaves import LeafReader
from ledger.adapters.notify import CHANNEL
from ledger.adapters.signing import (
    LogSigner,
    Memory,
    MemoryFileError,
    OtherOriginError,
    refuse_other_origin,
)
from ledger.adapters.store import BrokenLogError
from ledger.settings import SignerSettings

log = structlog.get_logger()
_POLL_S: Final = 0.25
_LEAST_PAUSE_S: Final = 0.02
_REFUSED_PAUSE_S: Final = 1.0
_WITNESS_TIMEOUT_S: Final = 2.0
_MEMORY_FILE: Final = "signer/signed.json"


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


def _version(path: Path) -> tuple[int, int]:
    """What tells that a file was replaced."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ino


async def _follow(
    config: SignerSettings,
    signer: LogSigner,
    stopped: asyncio.Event,
    door: grpcs.Server,
    db: Any,
) -> None:
    """Sign whatever grows, over one connection, until the key is replaced."""
    version = _version(config.signer_key)
    grew = asyncio.Event()
    await db.add_listener(CHANNEL, lambda *_: grew.set())
    while not stopped.is_set() and _version(config.signer_key) == version:
        grew.clear()
        signed, refused, waiting = await signer.sign_grown()
        if signed:
            await db.execute(f"NOTIFY {CHANNEL}")
        await door.set_ready(not refused and not waiting)
        for problem in refused:
            log.error("NOT SIGNED", problem=problem)
        for problem in waiting:
            log.warning("NOT COSIGNED", problem=problem)
        if refused or waiting:
            await _wait(stopped, _REFUSED_PAUSE_S)
            continue
        # Many small commits share a signature; a single one waits no longer than this.
        await _wait(stopped, _LEAST_PAUSE_S)
        if not stopped.is_set():
            await _wait(grew, _POLL_S)


def _cosigners(config: SignerSettings, client: httpx.AsyncClient) -> Cosigners | None:
    """The witnesses to ask. Errors: PolicyError, ValueError."""
    if config.witness_policy is None:
        return None
    return Cosigners(tlogpolicy.read(config.witness_policy), client)


async def sign(config: SignerSettings) -> None:
    """Sign until SIGTERM."""
    stopped = grpcs.stop_event()
    door = grpcs.Server("ledger-signer", config.health_address)
    memory = Memory(Path(config.home) / _MEMORY_FILE)
    keys.read_signer(config.signer_key)
    archive = Archive(config.segments())
    await door.start()
    client = httpx.AsyncClient(timeout=_WITNESS_TIMEOUT_S, follow_redirects=False, trust_env=False)
    try:
        cosigners = _cosigners(config, client)
        pool = await database.open_pool(config.ledger_postgres, 1, stopped)
        if pool is None:
            return
        pool.terminate()
        while not stopped.is_set():
            try:
                db = await database.connect(config.ledger_postgres)
                try:
                    await refuse_other_origin(db, config.origin)
                    key = keys.read_signer(config.signer_key)
                    signer = LogSigner(
                        db, key, config.origin, memory, LeafReader(db, archive), cosigners
                    )
                    await _follow(config, signer, stopped, door, db)
                finally:
                    db.terminate()
            except database.AWAY as error:
                log.warning("database away", error=repr(error))
                await door.set_ready(False)
                await _wait(stopped, _POLL_S)
    finally:
        await client.aclose()
        await door.stop(drain_ms=0)


def main() -> None:
    """Start the signer; status 1 with one line when it must not go on."""
    config = settings.load(SignerSettings)
    telemetry.configure("ledger-signer", config.log_level)
    try:
        uvloop.run(sign(config))
    except (
        MigrationError,
        MemoryFileError,
        OtherOriginError,
        keys.KeyFileError,
        BrokenLogError,
        ValueError,  # a policy that cannot be used
        errors.TollbookError,
        asyncpg.PostgresError,
        OSError,
    ) as error:
        log.error("signer stopped", error=str(error))
        sys.stderr.write(f"ledger.signer: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
