"""`python -m ledger.entrypoints.keygen`: the signer's key, made once, and the public keys."""

from __future__ import annotations

import sys

import structlog

from kernel import settings, telemetry
from ledger.adapters import keys
from ledger.settings import KeySettings

log = structlog.get_logger()


def main() -> None:
    """Make what is missing; status 1 with one line when it cannot."""
    config = settings.load(KeySettings)
    telemetry.configure("ledger-keygen", config.log_level)
    try:
        made = keys.ensure_keys(
            config.signer_key,
            config.verifier_keys,
            config.origin,
            keys.log_names(config.partitions),
        )
    except (OSError, keys.KeyFileError) as error:
        sys.stderr.write(f"ledger.keygen: {error}\n")
        raise SystemExit(1) from None
    log.info("signer key made" if made else "signer key kept", verifiers=str(config.verifier_keys))


if __name__ == "__main__":
    main()
