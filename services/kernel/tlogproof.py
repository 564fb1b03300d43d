"""C2SP tlog-proof: one entry's place under a signed checkpoint, as a text that stands by itself.

    c2sp.org/tlog-proof@v1
    index 73894
    BASE64(hash)            the inclusion proof, leaf's sibling first

    the checkpoint, with its signatures

Source: c2sp.org/tlog-proof.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from kernel.cosignature import CosignerKey, cosigners_of
from kernel.merkle import HASH_BYTES, ProofError, leaf_hash, verify_inclusion
from kernel.note import (
    MAX_NOTE_BYTES,
    MAX_TREE_SIZE,
    Checkpoint,
    NoteError,
    VerifierKey,
    open_checkpoint,
)

_HEADER: Final = "c2sp.org/tlog-proof@v1"
_MAX_HASHES: Final = 63
SUFFIX: Final = ".tlog-proof"


class TlogProofError(ValueError):
    """A text that is no proof, or a proof that does not prove."""


@dataclass(frozen=True, slots=True)
class TlogProof:
    """An entry's index, its inclusion proof, and the checkpoint (a signed note) it leads to.

    `extra` is what the writer put beside it; nothing vouches for it.
    """

    index: int
    hashes: Sequence[bytes]
    checkpoint: bytes
    extra: bytes = b""

    def to_bytes(self) -> bytes:
        """The text."""
        lines = [_HEADER]
        if self.extra:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines.append(f"index {self.index}")
        lines += [base64.b64encode(item).decode() for item in self.hashes]
        return ("\n".join(lines) + "\n\n").encode() + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> TlogProof:
        """Read the text. Errors: TlogProofError."""
        head, separator, checkpoint = data.partition(b"\n\n")
        if not separator or len(data) > 2 * MAX_NOTE_BYTES:
            raise TlogProofError("a tlog-proof is lines, an empty line and a checkpoint")
        lines = head.decode("utf-8", "replace").split("\n")
        if lines[0] != _HEADER:
            raise TlogProofError(f"a tlog-proof begins with {_HEADER!r}, not {lines[0][:80]!r}")
        del lines[0]
        extra = b""
        if lines and lines[0].startswith("extra "):
            extra = _base64(lines.pop(0).removeprefix("extra "))
        if not lines or not lines[0].startswith("index "):
            raise TlogProofError("a tlog-proof has a line `index N`")
        index = parse_decimal(lines.pop(0).removeprefix("index "))
        if index is None:
            raise TlogProofError("the index is a decimal number")
        if len(lines) > _MAX_HASHES:
            raise TlogProofError(f"a proof has at most {_MAX_HASHES} hashes")
        hashes = [_base64(line) for line in lines]
        if any(len(item) != HASH_BYTES for item in hashes):
            raise TlogProofError(f"a proof's hash has {HASH_BYTES} bytes")
        return cls(index, hashes, checkpoint, extra)

    def verify(
        self,
        leaf: bytes,
        keys: Iterable[VerifierKey],
        cosigners: Iterable[CosignerKey] = (),
    ) -> tuple[Checkpoint, dict[CosignerKey, int]]:
        """Check that the leaf bytes stand at the index under a checkpoint that a key signed.

        Gives the checkpoint, and who of the cosigners cosigned it, when. Which of them are
        enough is a policy's to say. Errors: TlogProofError.
        """
        checkpoint: Checkpoint | None = None
        why = "no key was given"
        for key in keys:
            try:
                checkpoint = open_checkpoint(self.checkpoint, key)
                break
            except NoteError as error:
                why = str(error)
        if checkpoint is None:
            raise TlogProofError(why)
        try:
            verify_inclusion(
                self.index, checkpoint.size, leaf_hash(leaf), self.hashes, checkpoint.root
            )
        except ProofError as error:
            raise TlogProofError(str(error)) from None
        return checkpoint, cosigners_of(self.checkpoint, cosigners)


def parse_decimal(text: str) -> int | None:
    """An ASCII decimal without leading zeroes, at most a tree's size; None when it is none."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        return None
    if len(text) > 1 and text[0] == "0":
        return None
    number = int(text)
    return number if number <= MAX_TREE_SIZE else None


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise TlogProofError(f"not base64: {text[:60]!r}") from None
