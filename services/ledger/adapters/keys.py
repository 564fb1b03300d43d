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

__all__ = [
    "KeyFileError",
    "add_verifiers",
    "ensure_keys",
    "log_names",
    "origin_of",
    "read_signer",
    "write_private",
]


def log_names(partitions: int) -> list[str]:
    """The logs of a system with this many partitions."""
    return [CONTROL_LOG, CUT_LOG, *(usage_log(number) for number in range(partitions))]


def origin_of(origin: str, log: str) -> str:
    """C2SP origin of a log."""
    return f"{origin}/{log}"


def ensure_keys(path: Path, verifiers: Path, origin: str, logs: Iterable[str]) -> bool:
    """Make the signer key when there is none, and write the verifiers' file from it.

    Keys that the file has already stay in it: they are those of earlier checkpoints.
    Gives whether a key was made. Errors: KeyFileError.
    """
    made = not path.exists()
    if made:
        write_private(path, f"{SignerKey.generate(origin)}\n")
    add_verifiers(verifiers, read_signer(path), origin, logs)
    return made


def add_verifiers(verifiers: Path, key: SignerKey, origin: str, logs: Iterable[str]) -> None:
    """Add a key's public lines, one a log, to the verifiers' file where they are not in it."""
    known = verifiers.read_text().splitlines() if verifiers.exists() else []
    lines = [str(key.named(origin_of(origin, log)).verifier) for log in logs]
    fresh = [line for line in lines if line not in known]
    if fresh:
        write_private(verifiers, "".join(f"{line}\n" for line in [*known, *fresh]))
        verifiers.chmod(0o644)
