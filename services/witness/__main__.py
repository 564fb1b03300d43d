"""`python -m witness`: a witness of transparency logs, by C2SP tlog-witness."""

from __future__ import annotations

import sys
import time

import structlog
import uvloop

from kernel import errors, grpcs, keyfile, settings, telemetry, web
from kernel.cosignature import CosignerKey
from kernel.note import NoteError
from witness.app import KeyFileError, LogKeys, Witness, app_of
from witness.keygen import ensure_key
from witness.settings import WitnessSettings
from witness.store import StoreError, open_store

log = structlog.get_logger()


async def run(config: WitnessSettings) -> None:
    """Cosign until SIGTERM."""
    stopped = grpcs.stop_event()
    key = ensure_key(config.witness_key, config.witness_name, config.witness_memory)
    keys = LogKeys(config.witness_logs)
    store = open_store(config.witness_memory)
    try:
        witness = Witness(key, store, keys, lambda: int(time.time()))
        log.info("witnessing", key=str(CosignerKey.of(key)), logs=sorted(keys.current()))
        await web.serve(app_of(witness), config.witness_address, stopped)
    finally:
        store.close()


def main() -> None:
    """Start the witness; status 1 with one line when it must not go on."""
    config = settings.load(WitnessSettings)
    telemetry.configure("witness", config.log_level)
    try:
        uvloop.run(run(config))
    except (
        StoreError,
        KeyFileError,
        keyfile.KeyFileError,
        NoteError,
        errors.TollbookError,
        OSError,
    ) as error:
        log.error("witness stopped", error=str(error))
        sys.stderr.write(f"witness: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
