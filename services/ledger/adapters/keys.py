"""The signer's key file and the verifiers' file.

One Ed25519 seed signs every log, each under the log's own name: the origin
ORIGIN/LOG is the key's name, as C2SP wants it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from kernel.note import NoteError, SignerKey
from kernel.placement import CONTROL_LOG, CUT_LOG, usage_log


class KeyFileError(RuntimeError):
    """A key file that cannot be used; says what to do."""


def log_names(partitions: int) -> list[str]:
    """The logs of a system with this many partitions."""
    return [CONTROL_LOG, CUT_LOG, *(usage_log(number) for number in range(partitions))]


def origin_of(origin: str, log: str) -> str:
    """C2SP origin of a log."""
    return f"{origin}/{log}"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_signer(path: Path) -> SignerKey:
    """Read the signer key. Errors: KeyFileError."""
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except OSError as error:
        raise KeyFileError(f"cannot read the signer key {path}: {error.strerror}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(f"the signer key {path} may be read by others: chmod 600 it")
    try:
        return SignerKey.parse(text)
    except NoteError as error:
        raise KeyFileError(f"{path}: {error}") from None


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
