"""The auditor's keys, and what they say of a log's checkpoint.

One line a key, `NAME+ID+BASE64` as C2SP writes verifier keys; the name is the
log's origin, and its last part is the log's name. Several keys may have one
name: any of them will do. Keys that came later are found by the control log
(rotations.py). Empty lines and `#` lines are passed
over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from audit.findings import Finding, UnusableError
from audit.layout import LogFiles
from kernel.cosignature import cosigners_of
from kernel.note import (
    Checkpoint,
    NoteError,
    VerifierKey,
    open_checkpoint,
    parse_checkpoint,
    split_note,
)
from kernel.tlogpolicy import Policy

_MAX_KEY_FILE_BYTES: Final = 4 * 1024 * 1024
Keys = Mapping[str, Sequence[VerifierKey]]
"""origin -> keys"""


def read_keys(path: Path) -> Keys:
    """Read a key file. Errors: UnusableError."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_FILE_BYTES).decode()
    except OSError as error:
        raise UnusableError(f"cannot read the key file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnusableError(f"the key file {path} is not text") from None
    keys: dict[str, list[VerifierKey]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("PRIVATE+KEY+"):
            raise UnusableError(
                f"{path} line {number} is a private key: give the auditor verifier keys, and"
                " keep that one to the signer"
            )
        try:
            key = VerifierKey.parse(line)
        except NoteError as error:
            raise UnusableError(f"{path} line {number}: {error}") from None
        keys.setdefault(key.name, []).append(key)
    if not keys:
        raise UnusableError(f"the key file {path} holds no key")
    return keys


class Opened(NamedTuple):
    """A log's checkpoint: verified, or why not.

    `unverified` is what it claims where it can be read at all.
    """

    checkpoint: Checkpoint | None
    unverified: Checkpoint | None
    problem: Finding | None
    key: VerifierKey | None = None
    """The key that the checkpoint was verified by."""


def check_cosigned(files: LogFiles, policy: Policy) -> Finding | None:
    """Whether enough witnesses cosigned a log's checkpoint."""
    place = f"{files.log} checkpoint"
    try:
        cosigners = cosigners_of(files.checkpoint() or b"", policy.keys)
    except NoteError as error:
        return Finding(place, str(error))
    if policy.is_met(cosigners.keys()):
        return None
    names = ", ".join(sorted(key.name for key in cosigners)) or "none of the policy's witnesses"
    return Finding(place, f"not enough witnesses cosigned it for the policy: {names} did")


def open_log(files: LogFiles, keys: Keys) -> Opened:
    """Verify a log's checkpoint by the keys given."""
    place = f"{files.log} checkpoint"
    data = files.checkpoint()
    if data is None:
        return Opened(None, None, Finding(place, "there is none"))
    try:
        text, _ = split_note(data)
        claimed = parse_checkpoint(text)
    except NoteError as error:
        return Opened(None, None, Finding(place, str(error)))
    if claimed.origin.rpartition("/")[2] != files.log:
        return Opened(
            None, claimed, Finding(place, f"it is of the log {claimed.origin!r}, not of this one")
        )
    candidates = keys.get(claimed.origin, ())
    if not candidates:
        return Opened(
            None, claimed, Finding(place, f"the key file has no key of {claimed.origin!r}")
        )
    problem = ""
    for key in candidates:
        try:
            return Opened(open_checkpoint(data, key), claimed, None, key)
        except NoteError as error:
            problem = str(error)
    return Opened(None, claimed, Finding(place, problem))
