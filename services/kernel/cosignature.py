"""C2SP tlog-cosignature v1: a witness's timestamped Ed25519 signature on a checkpoint.

A cosigner's verifier key is `NAME+HEX(key id)+BASE64(0x04 || public key)`; the
key id is the first four bytes of SHA-256(NAME || "\\n" || 0x04 || public key).
Signed are the lines `cosignature/v1` and `time SECONDS` and the checkpoint's
text; the signature is the time (u64, big-endian) and 64 bytes. The private key
is kept as any other note key (kernel/note.py).

Source: c2sp.org/tlog-cosignature.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kernel.note import NoteError, SignerKey, VerifierKey, signature_line, split_note

_COSIGNATURE_V1: Final = b"\x04"
_TIME_BYTES: Final = 8
_SIGNATURE_BYTES: Final = 64
_MAX_TIME_S: Final = 2**63 - 1


def _message(text: bytes, time_s: int) -> bytes:
    return b"cosignature/v1\ntime %d\n" % time_s + text


@dataclass(frozen=True, slots=True)
class CosignerKey:
    """A witness's public key and name."""

    name: str
    public: bytes

    @classmethod
    def of(cls, key: SignerKey) -> CosignerKey:
        """The public half of a witness's key."""
        return cls(key.name, key.verifier.public)

    @property
    def key_id(self) -> bytes:
        """Four bytes that tell this key from others in a note."""
        named = self.name.encode() + b"\n" + _COSIGNATURE_V1 + self.public
        return hashlib.sha256(named).digest()[:4]

    def __str__(self) -> str:
        encoded = base64.b64encode(_COSIGNATURE_V1 + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    @classmethod
    def parse(cls, text: str) -> CosignerKey:
        """Read `NAME+HEX+BASE64`. Errors: NoteError."""
        try:
            name, key_id, encoded = text.strip().split("+", 2)
            data = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise NoteError(
                f"not a cosigner's key (NAME+KEYID+BASE64): {text.strip()[:80]!r}"
            ) from None
        if len(data) != 33 or data[:1] != _COSIGNATURE_V1:
            raise NoteError(f"the key of {name!r} is not one for Ed25519 cosignatures (type 04)")
        key = cls(name, data[1:])
        if not name or key.key_id.hex() != key_id:
            raise NoteError(
                f"the key of {name!r} says id {key_id}, its bytes give {key.key_id.hex()}"
            )
        return key

    def time_of(self, text: bytes, signature: bytes) -> int | None:
        """When this key cosigned the text, in seconds since 1970; None when it did not."""
        if len(signature) != _TIME_BYTES + _SIGNATURE_BYTES:
            return None
        time_s = int.from_bytes(signature[:_TIME_BYTES], "big")
        key = VerifierKey(self.name, self.public)
        if time_s > _MAX_TIME_S or not key.verify(_message(text, time_s), signature[_TIME_BYTES:]):
            return None
        return time_s


def cosign(text: bytes, key: SignerKey, now_s: int) -> bytes:
    """The signature line of a cosignature on a checkpoint's text."""
    signature = now_s.to_bytes(_TIME_BYTES, "big") + key.sign(_message(text, now_s))
    return signature_line(key.name, CosignerKey.of(key).key_id, signature)


def cosigners_of(note: bytes, keys: Iterable[CosignerKey]) -> dict[CosignerKey, int]:
    """Which of the keys cosigned a checkpoint, and when (seconds since 1970).

    Lines of other keys are passed over. Errors: NoteError when it is no note.
    """
    text, signatures = split_note(note)
    found: dict[CosignerKey, int] = {}
    for key in keys:
        times = [
            time_s
            for name, key_id, signature in signatures
            if name == key.name and key_id == key.key_id
            if (time_s := key.time_of(text, signature)) is not None
        ]
        if times:
            found[key] = max(times)
    return found


def with_lines(note: bytes, lines: Iterable[bytes]) -> bytes:
    """A note with more signature lines."""
    return note + b"".join(lines)
