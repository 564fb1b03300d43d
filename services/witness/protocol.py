"""C2SP tlog-witness's add-checkpoint, without the HTTP: a request's bytes to a decision.

Pure. What a witness cosigns is decided here; that the old size is still the last
one when the new one is kept is the store's to make sure (store.py).

Source: c2sp.org/tlog-witness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from kernel.merkle import ProofError, verify_consistency
from kernel.note import (
    Checkpoint,
    NoteError,
    VerifierKey,
    open_checkpoint,
    parse_checkpoint,
    split_note,
)
from kernel.tlogwitness import SIZE_TYPE, Request, RequestError

BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
UNPROCESSABLE: Final = 422


class Seen(NamedTuple):
    """The latest tree of a log that this witness cosigned."""

    size: int
    root: bytes


class RefusedError(Exception):
    """A request that is not cosigned: HTTP status, what to say, and its content type."""

    def __init__(self, status: int, text: str, content_type: str = "text/plain") -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.content_type = content_type


def parse_request(body: bytes) -> Request:
    """Read a body. Errors: RefusedError(400)."""
    try:
        return Request.parse(body)
    except RequestError as error:
        raise RefusedError(BAD_REQUEST, f"{error}\n") from None


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
