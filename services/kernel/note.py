"""C2SP signed notes and tlog checkpoints, with Ed25519 keys.

A checkpoint is three lines (origin, size, base64 root) and a signature line
`— NAME BASE64(key id || signature)`. A verifier key is
`NAME+HEX(key id)+BASE64(0x01 || public key)`; the key id is the first four
bytes of SHA-256(NAME || "\\n" || 0x01 || public key). The signer key's text is
Go's note.GenerateKey form: `PRIVATE+KEY+NAME+HEX(key id)+BASE64(0x01 || seed)`.

Sources: c2sp.org/signed-note, c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_ED25519: Final = b"\x01"
_PREFIX: Final = "\N{EM DASH} "
_NAME: Final = re.compile(r"[^\s+\x00-\x1f]+")
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")
MAX_NOTE_BYTES: Final = 1_000_000
MAX_SIGNATURES: Final = 100
MAX_TREE_SIZE: Final = 2**63 - 1


class NoteError(ValueError):
    """A note, key or checkpoint that is not well formed, or that no known key signed."""


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise NoteError(f"a key name is not empty and has no space and no '+': {name!r}")


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key and the name it signs under."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """Four bytes that tell this key from others in a note."""
        return _key_id(self.name, self.public)

    def __str__(self) -> str:
        return (
            f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"
        )

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read `NAME+HEX+BASE64`. Errors: NoteError."""
        try:
            name, key_id, encoded = text.strip().split("+", 2)
            data = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise NoteError(
                f"not a verifier key (NAME+KEYID+BASE64): {text.strip()[:80]!r}"
            ) from None
        _check_name(name)
        if len(data) != 33 or data[:1] != _ED25519:
            raise NoteError(f"the verifier key of {name!r} is not an Ed25519 key")
        key = cls(name, data[1:])
        if key.key_id.hex() != key_id:
            raise NoteError(
                f"the verifier key of {name!r} says id {key_id}, its bytes give {key.key_id.hex()}"
            )
        return key

    def verify(self, text: bytes, signature: bytes) -> bool:
        """Tell whether `signature` (64 bytes) over `text` is this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SignerKey:
    """A private key (32-byte Ed25519 seed) and the name it signs under."""

    name: str
    seed: bytes

    @classmethod
    def generate(cls, name: str) -> SignerKey:
        """Make a new key."""
        _check_name(name)
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    def named(self, name: str) -> SignerKey:
        """The same private key under another name (one seed, one name for each log)."""
        _check_name(name)
        return SignerKey(name, self.seed)

    @property
    def verifier(self) -> VerifierKey:
        """The public half."""
        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key()
        return VerifierKey(self.name, public.public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, text: bytes) -> bytes:
        """Sign bytes: 64 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(text)

    def __str__(self) -> str:
        encoded = base64.b64encode(_ED25519 + self.seed).decode()
        return f"PRIVATE+KEY+{self.name}+{self.verifier.key_id.hex()}+{encoded}"

    def __repr__(self) -> str:
        # A traceback or a log line must never show the seed.
        return f"SignerKey({self.name!r})"

    @classmethod
    def parse(cls, text: str) -> SignerKey:
        """Read `PRIVATE+KEY+NAME+HEX+BASE64`. Errors: NoteError (which never shows the key)."""
        parts = text.strip().split("+", 4)
        if len(parts) != 5 or parts[:2] != ["PRIVATE", "KEY"]:
            raise NoteError("not a signer key (PRIVATE+KEY+NAME+KEYID+BASE64)")
        _check_name(parts[2])
        try:
            data = base64.b64decode(parts[4], validate=True)
        except ValueError:  # as is binascii.Error, but not what a letter outside ASCII raises
            data = b""
        if len(data) != 33 or data[:1] != _ED25519:
            raise NoteError(f"the signer key of {parts[2]!r} is not an Ed25519 key")
        key = cls(parts[2], data[1:])
        if key.verifier.key_id.hex() != parts[3]:
            raise NoteError(f"the signer key of {parts[2]!r} does not match its key id")
        return key


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree's size and root (32 bytes) under its log's origin."""

    origin: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """The signed text: three lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()


def parse_checkpoint(text: bytes) -> Checkpoint:
    """Read a checkpoint's text; extension lines are allowed and ignored. Errors: NoteError."""
    lines = text.decode("utf-8", "replace").split("\n")
    if len(lines) < 4 or lines[-1] != "" or not lines[0]:
        raise NoteError("a checkpoint has an origin, a size and a root, a line each")
    if not (lines[1].isascii() and lines[1].isdigit()) or (
        len(lines[1]) > 1 and lines[1][0] == "0"
    ):
        raise NoteError(f"a checkpoint's size is a decimal number, not {lines[1][:40]!r}")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except ValueError:
        root = b""
    if len(root) != 32:
        raise NoteError(f"a checkpoint's root is 32 bytes in base64, not {lines[2][:60]!r}")
    # 19 digits first: int() of a stranger's megabyte of digits is slow, or an error of its own.
    size = int(lines[1]) if len(lines[1]) <= 19 else MAX_TREE_SIZE + 1
    if size > MAX_TREE_SIZE:
        raise NoteError(f"a checkpoint's size is at most {MAX_TREE_SIZE}, not {lines[1][:40]}")
    return Checkpoint(lines[0], size, root)


def signature_line(key_name: str, key_id: bytes, signature: bytes) -> bytes:
    """One signature line of a note."""
    return f"{_PREFIX}{key_name} {base64.b64encode(key_id + signature).decode()}\n".encode()


def sign_checkpoint(checkpoint: Checkpoint, key: SignerKey) -> bytes:
    """Give the signed note. Errors: NoteError when the key's name is not the origin."""
    if key.name != checkpoint.origin:
        raise NoteError(f"the key {key.name!r} does not sign for the origin {checkpoint.origin!r}")
    text = checkpoint.text()
    return text + b"\n" + signature_line(key.name, key.verifier.key_id, key.sign(text))


def split_note(note: bytes) -> tuple[bytes, list[tuple[str, bytes, bytes]]]:
    """Split a note into text and signatures (name, key id, signature). Errors: NoteError."""
    if len(note) > MAX_NOTE_BYTES:
        raise NoteError(f"a note has at most {MAX_NOTE_BYTES} bytes")
    try:
        letters = note.decode()
    except UnicodeDecodeError as error:
        raise NoteError(f"a note is UTF-8; byte {error.start} is not") from None
    if _CONTROL.search(letters):
        raise NoteError("a note has no control characters but the newline")
    cut = note.rfind(b"\n\n")
    if cut < 0 or not note.endswith(b"\n"):
        raise NoteError("a note is text, an empty line and signature lines")
    signatures: list[tuple[str, bytes, bytes]] = []
    lines = note[cut + 2 : -1].decode().split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError(f"a note has at most {MAX_SIGNATURES} signatures")
    for line in lines:
        name, _, encoded = line.removeprefix(_PREFIX).partition(" ")
        if not line.startswith(_PREFIX) or not _NAME.fullmatch(name):
            raise NoteError(f"not a signature line: {line[:80]!r}")
        try:
            data = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise NoteError(f"not a signature line: {line[:80]!r}") from None
        if len(data) < 5:
            raise NoteError(f"the signature of {name!r} is too short")
        signatures.append((name, data[:4], data[4:]))
    return note[: cut + 1], signatures


def open_checkpoint(note: bytes, key: VerifierKey) -> Checkpoint:
    """Verify a checkpoint's signature by `key` and read it.

    Errors: NoteError when it is not well formed, is not of the key's origin,
    carries no signature of the key, or one that does not verify.
    """
    text, signatures = split_note(note)
    checkpoint = parse_checkpoint(text)
    if checkpoint.origin != key.name:
        raise NoteError(f"the checkpoint is of {checkpoint.origin!r}, the key is of {key.name!r}")
    own = [sig for name, key_id, sig in signatures if name == key.name and key_id == key.key_id]
    if not own:
        raise NoteError(
            f"the checkpoint of {checkpoint.origin!r} carries no signature by the key given"
        )
    if not all(key.verify(text, signature) for signature in own):
        raise NoteError(f"the signature on the checkpoint of {checkpoint.origin!r} does not verify")
    return checkpoint
