"""The signer's key file and the verifiers' file.

One Ed25519 seed signs every log, each under the log's own name: the origin
ORIGIN/LOG is the key's name, as C2SP wants it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kernel.keyfile import KeyFileError, read_signer, write_private
from kernel.note import SignerKey
from kernel.placement import CONTROL_LOG, CUT_LOG, usage_log

__all__ = ["KeyFileError", "ensure_keys", "log_names", "origin_of", "read_signer", "write_private"]


def log_names(partitions: int) -> list[str]:
    """The logs of a system with this many partitions."""
    return [CONTROL_LOG, CUT_LOG, *(usage_log(number) for number in range(partitions))]


def origin_of(origin: str, log: str) -> str:
    """C2SP origin of a log."""
    return f"{origin}/{log}"


def ensure_keys(path: Path, verifiers: Path, origin: str, logs: Iterable[str]) -> bool:
    """Make the signer key when there is none, and write the verifiers' file from it.

    Gives whether a key was made. Errors: KeyFileError.
    """
    made = not path.exists()
    if made:
        write_private(path, f"{SignerKey.generate(origin)}\n")
    key = read_signer(path)
    lines = [str(key.named(origin_of(origin, log)).verifier) for log in logs]
    text = "".join(f"{line}\n" for line in lines)
    if not verifiers.exists() or verifiers.read_text() != text:
        write_private(verifiers, text)
        verifiers.chmod(0o644)
    return made
