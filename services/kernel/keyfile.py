"""Files of private keys: read only when nobody else may, written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kernel.note import NoteError, SignerKey


class KeyFileError(RuntimeError):
    """A key file that cannot be used; says what to do."""


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
    """Read a signer key. Errors: KeyFileError."""
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
