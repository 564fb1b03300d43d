"""`python -m ledger.entrypoints.rotate`: a new key for the signer, signed by the old one.

Run where the signer runs, as its user. In this order, so that it may be run again
after a crash at any point: the new key beside the old one, the record in the
control log, the new public keys, the new key in the old one's place. Between the
second and the last the signer signs nothing; it takes the new key up by itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import structlog

from kernel import grpcs, settings, telemetry
from kernel.keychain import rotate as rotation_between
from kernel.keyfile import KeyFileError, read_signer, sync_folder, write_private
from kernel.note import SignerKey
from kernel.placement import CONTROL_LOG
from ledger.adapters.keys import add_verifiers, log_names
from ledger.domain.rotation import record_of
from ledger.settings import RotateSettings
from tollbook.ledger.v1 import ledger_pb2, ledger_pb2_grpc

log = structlog.get_logger()

_TIMEOUT_S: Final = 30.0


async def rotate(config: RotateSettings) -> int:
    """Rotate; gives the position of the record in the control log.

    Errors: KeyFileError, AioRpcError.
    """
    path = config.signer_key
    fresh = path.with_name(f"{path.name}.next")
    old = read_signer(path)
    if not fresh.exists():
        write_private(fresh, f"{SignerKey.generate(config.origin)}\n")
    new = read_signer(fresh)
    rotation = rotation_between(config.origin, old, new)
    async with grpcs.channel(config.ledger_address) as channel:
        stub: ledger_pb2_grpc.LedgerServiceAsyncStub = ledger_pb2_grpc.LedgerServiceStub(channel)
        request = ledger_pb2.AppendRequest(
            log=CONTROL_LOG,
            idempotency_key=f"signer-key-{new.verifier.public.hex()}",
            payload=record_of(rotation, "signer", _time_us(fresh)),
        )
        answer = await stub.Append(request, timeout=_TIMEOUT_S, wait_for_ready=True)
    add_verifiers(config.verifier_keys, new, config.origin, log_names(config.partitions))
    retired = path.with_name(f"{path.name}.retired-{old.verifier.key_id.hex()}")
    if not retired.exists():
        os.link(path, retired)
    os.replace(fresh, path)
    sync_folder(path.parent)
    return answer.position


def _time_us(fresh: Path) -> int:
    """The record's time: when the new key was made, so that a repeat has the same bytes."""
    return fresh.stat().st_mtime_ns // 1000


def main() -> None:
    """Rotate; status 1 with one line when it cannot."""
    config = settings.load(RotateSettings)
    telemetry.configure("ledger-rotate", config.log_level)
    try:
        position = asyncio.run(rotate(config))
    except grpc.aio.AioRpcError as error:
        sys.stderr.write(f"ledger.rotate: the ledger: {error.details() or error.code().name}\n")
        raise SystemExit(1) from None
    except (KeyFileError, OSError) as error:
        sys.stderr.write(f"ledger.rotate: {error}\n")
        raise SystemExit(1) from None
    log.info("signer key rotated", control_position=position, verifiers=str(config.verifier_keys))


if __name__ == "__main__":
    main()
