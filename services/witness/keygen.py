"""`python -m witness.keygen`: a witness's key, made once, and a policy that asks for this witness.

The policy (C2SP tlog-policy) is for who has no other: it names this witness alone
and wants its cosignature. A policy that is there is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kernel import settings
from kernel.cosignature import CosignerKey
from kernel.keyfile import KeyFileError, read_signer, write_private
from kernel.note import NoteError, SignerKey
from witness.settings import WitnessKeySettings


def ensure_key(path: Path, name: str, memory: Path) -> SignerKey:
    """Read the key, or make it when there is neither key nor memory. Errors: KeyFileError."""
    if not path.exists():
        if not name:
            raise KeyFileError(
                f"there is no key {path}: bring it, or set TOLLBOOK_WITNESS_NAME to have one made"
            )
        if memory.exists():
            raise KeyFileError(f"there is no key {path}, but a memory {memory}: restore the key")
        try:
            write_private(path, f"{SignerKey.generate(name)}\n")
        except NoteError as error:
            raise KeyFileError(f"TOLLBOOK_WITNESS_NAME: {error}") from None
    return read_signer(path)


def main() -> None:
    """Make what is missing; status 1 with one line when it cannot."""
    config = settings.load(WitnessKeySettings)
    try:
        key = ensure_key(config.witness_key, config.witness_name, config.witness_memory)
        if not config.witness_policy.exists():
            vkey = CosignerKey.of(key)
            url = f"http://{config.witness_address}"
            write_private(config.witness_policy, f"witness w1 {vkey} {url}\nquorum w1\n")
            config.witness_policy.chmod(0o644)
    except (KeyFileError, OSError) as error:
        sys.stderr.write(f"witness.keygen: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
