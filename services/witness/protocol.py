"""C2SP tlog-witness's add-checkpoint, without the HTTP: a request's bytes to a decision.

Pure. What a witness cosigns is decided here; that the old size is still the last
one when the new one is kept is the store's to make sure (store.py).

Source: c2sp.org/tlog-witness.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from kernel.merkle import HASH_BYTES, ProofError, verify_consistency
from kernel.note import (
    MAX_NOTE_BYTES,
    Checkpoint,
    NoteError,
    VerifierKey,
    open_checkpoint,
    parse_checkpoint,
    split_note,
)
from kernel.tlogproof import parse_decimal

MAX_PROOF_LINES: Final = 63
MAX_REQUEST_BYTES: Final = MAX_NOTE_BYTES + 64 * 64
SIZE_TYPE: Final = "text/x.tlog.size"

BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
UNPROCESSABLE: Final = 422


class Seen(NamedTuple):
    """The latest tree of a log that this witness cosigned."""

    size: int
    root: bytes


class Request(NamedTuple):
    """An add-checkpoint request."""

    old_size: int
    proof: Sequence[bytes]
    note: bytes


class RefusedError(Exception):
    """A request that is not cosigned: HTTP status, what to say, and its content type."""

    def __init__(self, status: int, text: str, content_type: str = "text/plain") -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.content_type = content_type


def format_request(request: Request) -> bytes:
    """The body of a request."""
    lines = [f"old {request.old_size}"]
    lines += [base64.b64encode(node).decode() for node in request.proof]
    return ("\n".join(lines) + "\n\n").encode() + request.note


def parse_request(body: bytes) -> Request:
    """Read a body. Errors: RefusedError(400)."""
    head, separator, note = body.partition(b"\n\n")
    if not separator:
        raise RefusedError(BAD_REQUEST, "a request is lines, an empty line and a checkpoint\n")
    lines = head.decode("utf-8", "replace").split("\n")
    old_size = parse_decimal(lines[0].removeprefix("old "))
    if not lines[0].startswith("old ") or old_size is None:
        raise RefusedError(BAD_REQUEST, "the first line is `old SIZE`\n")
    if len(lines) - 1 > MAX_PROOF_LINES:
        raise RefusedError(BAD_REQUEST, f"a proof has at most {MAX_PROOF_LINES} lines\n")
    proof: list[bytes] = []
    for line in lines[1:]:
        try:
            node = base64.b64decode(line, validate=True)
        except (binascii.Error, ValueError):
            node = b""
        if len(node) != HASH_BYTES:
            raise RefusedError(BAD_REQUEST, "a line of the proof is a hash in base64\n")
        proof.append(node)
    return Request(old_size, proof, note)


def open_request(
    request: Request, keys: Mapping[str, Sequence[VerifierKey]]
) -> tuple[Checkpoint, bytes]:
    """The checkpoint of a request and its signed text, once a key of its log vouches for it.

    Errors: RefusedError (400, 403, 404).
    """
    try:
        text, _ = split_note(request.note)
        claimed = parse_checkpoint(text)
    except NoteError as error:
        raise RefusedError(BAD_REQUEST, f"{error}\n") from None
    known = keys.get(claimed.origin, ())
    if not known:
        raise RefusedError(NOT_FOUND, f"the log {claimed.origin!r} is not known here\n")
    for key in known:
        try:
            checkpoint = open_checkpoint(request.note, key)
        except NoteError:
            continue
        if request.old_size > checkpoint.size:
            raise RefusedError(
                BAD_REQUEST, f"old size {request.old_size} is over the size {checkpoint.size}\n"
            )
        return checkpoint, text
    raise RefusedError(FORBIDDEN, f"no known key of {claimed.origin!r} signed this\n")


def check(request: Request, checkpoint: Checkpoint, seen: Seen) -> None:
    """Hold the checkpoint against what was cosigned before. Errors: RefusedError (409, 422)."""
    if request.old_size != seen.size:
        raise RefusedError(CONFLICT, f"{seen.size}\n", SIZE_TYPE)
    if checkpoint.size == seen.size and checkpoint.root != seen.root:
        # Two trees of one size, each signed by the log: the client has nothing to try again.
        raise RefusedError(CONFLICT, f"{seen.size}\n", SIZE_TYPE)
    try:
        if seen.size == 0:
            if request.proof:
                raise ProofError("the proof from the empty tree is empty")
            return
        verify_consistency(seen.size, checkpoint.size, seen.root, checkpoint.root, request.proof)
    except ProofError as error:
        raise RefusedError(UNPROCESSABLE, f"{error}\n") from None
