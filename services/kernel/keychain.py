"""Rotation of a signer's key: the old key signs the new one, and the new one signs that it is held.

Both sign one text:

    tollbook-signer-key/v1
    ORIGIN
    BASE64(old public key)
    BASE64(new public key)

Such a record stands in the control log. Whoever trusts one key of the chain
follows it, in the log's order, to the newest; a record that does not begin at a
trusted key, or that a key did not sign, changes nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kernel.note import SignerKey, VerifierKey

_HEADER: Final = "tollbook-signer-key/v1"


class Rotation(NamedTuple):
    """From one public key (32 bytes) to the next, with both keys' signatures (64 bytes each)."""

    origin: str
    old: bytes
    new: bytes
    old_signature: bytes
    new_signature: bytes

    def is_signed(self) -> bool:
        """Whether both keys signed it."""
        text = _text(self.origin, self.old, self.new)
        return (
            self.old != self.new
            and VerifierKey(self.origin, self.old).verify(text, self.old_signature)
            and VerifierKey(self.origin, self.new).verify(text, self.new_signature)
        )


def _text(origin: str, old: bytes, new: bytes) -> bytes:
    lines = [_HEADER, origin, base64.b64encode(old).decode(), base64.b64encode(new).decode()]
    return ("\n".join(lines) + "\n").encode()


def rotate(origin: str, old: SignerKey, new: SignerKey) -> Rotation:
    """Make the record of a rotation."""
    text = _text(origin, old.verifier.public, new.verifier.public)
    return Rotation(
        origin, old.verifier.public, new.verifier.public, old.sign(text), new.sign(text)
    )


@dataclass
class KeyChain:
    """Public keys that are trusted for an origin, and which of them were retired where."""

    origin: str
    trusted: set[bytes]
    retired: dict[bytes, int] = field(default_factory=dict)
    """Public key to the position of the control record that retired it."""

    def take(self, position: int, rotation: Rotation) -> bool:
        """Follow a rotation that stands at a position of the control log; False: it is no use."""
        if (
            rotation.origin != self.origin
            or rotation.old not in self.trusted
            or rotation.old in self.retired
            or rotation.new in self.retired
            or not rotation.is_signed()
        ):
            return False
        self.retired[rotation.old] = position
        self.trusted.add(rotation.new)
        return True

    def current(self) -> set[bytes]:
        """Keys that are trusted and not retired."""
        return self.trusted - self.retired.keys()

    def keys(self, name: str) -> list[VerifierKey]:
        """All trusted keys under a log's name, the current ones first."""
        ordered = sorted(self.trusted, key=lambda public: (public in self.retired, public))
        return [VerifierKey(name, public) for public in ordered]


def follow(chain: KeyChain, rotations: Iterable[tuple[int, Rotation]]) -> None:
    """Follow rotations in the log's order."""
    for position, rotation in rotations:
        chain.take(position, rotation)
