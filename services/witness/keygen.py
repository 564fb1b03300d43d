"""`python -m witness.keygen`: a witness's key, made once, and a policy that asks for this witness.

The policy (C2SP tlog-policy) is for who has no other: it names this witness alone
and wants its cosignature. One that is there and says just that follows the witness to
another port; any other policy is somebody's own, and is kept.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from kernel import settings
from kernel.cosignature import CosignerKey
from kernel.keyfile import KeyFileError, read_signer, write_private
from kernel.note import NoteError, SignerKey
from witness.settings import WitnessKeySettings

_OWN: Final = re.compile(r"witness w1 (\S+) http://(\S+):\d+\nquorum w1\n")


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


def follow(policy: Path, key: SignerKey, address: str) -> None:
    """Have the policy say where the witness is. Kept is whatever is not this witness alone, on
    another port of its host: a local stack's ports move. Errors: OSError.
    """
    vkey = str(CosignerKey.of(key))
    wanted = f"witness w1 {vkey} http://{address}\nquorum w1\n"
    if policy.exists():
        told = _OWN.fullmatch(written := policy.read_text(encoding="utf-8"))
        own = told is not None and told.groups() == (vkey, address.rpartition(":")[0])
        if written == wanted or not own:
            return
    write_private(policy, wanted)
    policy.chmod(0o644)


def main() -> None:
    """Make what is missing; status 1 with one line when it cannot."""
    config = settings.load(WitnessKeySettings)
    try:
        key = ensure_key(config.witness_key, config.witness_name, config.witness_memory)
        follow(config.witness_policy, key, config.witness_address)
    except (KeyFileError, OSError) as error:
        sys.stderr.write(f"witness.keygen: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
