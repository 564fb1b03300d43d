"""The words of C2SP tlog-witness: the body of an add-checkpoint request.

    old SIZE
    BASE64(hash)            the consistency proof from SIZE, at most 63 lines

    the checkpoint, signed

Source: c2sp.org/tlog-witness.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final, NamedTuple

from kernel.merkle import HASH_BYTES
from kernel.note import MAX_NOTE_BYTES
from kernel.tlogproof import parse_decimal

PATH: Final = "/add-checkpoint"
SIZE_TYPE: Final = "text/x.tlog.size"
"""Content type of a conflict's answer: the size that was cosigned last, and a newline."""

MAX_PROOF_LINES: Final = 63
MAX_REQUEST_BYTES: Final = MAX_NOTE_BYTES + 64 * 64


class RequestError(ValueError):
    """Bytes that are no request."""


class Request(NamedTuple):
    """An add-checkpoint request."""

    old_size: int
    proof: Sequence[bytes]
    note: bytes

    def to_bytes(self) -> bytes:
        """The body."""
        lines = [f"old {self.old_size}"]
        lines += [base64.b64encode(node).decode() for node in self.proof]
        return ("\n".join(lines) + "\n\n").encode() + self.note

    @classmethod
    def parse(cls, body: bytes) -> Request:
        """Read a body. Errors: RequestError."""
        head, separator, note = body.partition(b"\n\n")
        if not separator:
            raise RequestError("a request is lines, an empty line and a checkpoint")
        lines = head.decode("utf-8", "replace").split("\n")
        old_size = parse_decimal(lines[0].removeprefix("old "))
        if not lines[0].startswith("old ") or old_size is None:
            raise RequestError("the first line is `old SIZE`")
        if len(lines) - 1 > MAX_PROOF_LINES:
            raise RequestError(f"a proof has at most {MAX_PROOF_LINES} lines")
        proof: list[bytes] = []
        for line in lines[1:]:
            try:
                node = base64.b64decode(line, validate=True)
            except ValueError:
                node = b""
            if len(node) != HASH_BYTES:
                raise RequestError("a line of the proof is a hash in base64")
            proof.append(node)
        return cls(old_size, proof, note)
