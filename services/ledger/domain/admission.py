"""Admission: the disposition of each record of a usage log, from the log before it alone.

The rules, in order:

1. A record that `scan` finds unusable is rejected. If its envelope can be
   read, its place in its stream counts as come.
2. A usable record whose identity stood in the log with the same body is a
   duplicate; with another body it is a conflict.
3. A new identity at a place of the stream that came before is a conflict: two
   different records claim one place.
4. Everything else is accepted.

Identity is (account_id, event_id) of a usage event, and the place in the
stream for other records. It never expires, and only accepted records set it.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Final, NamedTuple

from kernel.leaf import Leaf, aside_of
from ledger.domain import scan as scanning
from ledger.domain.scan import Scanned
from ledger.domain.streams import StreamOverflowError, StreamState
from tollbook.ledger.v1 import ledger_pb2 as ledger

ACCEPTED: Final = int(ledger.DISPOSITION_ACCEPTED)
DUPLICATE: Final = int(ledger.DISPOSITION_DUPLICATE)
CONFLICT: Final = int(ledger.DISPOSITION_CONFLICT)
REJECTED: Final = int(ledger.DISPOSITION_REJECTED)

STREAM_REPEAT: Final = int(ledger.REASON_STREAM_REPEAT)
IDENTITY_REPEAT: Final = int(ledger.REASON_IDENTITY_REPEAT)


class Verdict(NamedTuple):
    """What became of a record."""

    disposition: int
    reason: int


_ACCEPTED: Final = Verdict(ACCEPTED, scanning.OK)
_DUPLICATE_STREAM: Final = Verdict(DUPLICATE, STREAM_REPEAT)
_DUPLICATE_IDENTITY: Final = Verdict(DUPLICATE, IDENTITY_REPEAT)
_CONFLICT_STREAM: Final = Verdict(CONFLICT, STREAM_REPEAT)
_CONFLICT_IDENTITY: Final = Verdict(CONFLICT, IDENTITY_REPEAT)
_OVERFLOW: Final = Verdict(REJECTED, scanning.INVALID_FIELD)


def decide(
    found: Scanned, stream: StreamState, same_body: Callable[[bytes], bool | None]
) -> Verdict:
    """Disposition of a record with a readable envelope; takes its place in `stream` in.

    `same_body(identity)` tells whether the accepted record of that identity
    has this record's body; None when there is none.
    """
    try:
        is_new_place = stream.note(found.stream_seq)
    except StreamOverflowError:
        return Verdict(REJECTED, found.reason) if found.reason else _OVERFLOW
    if found.reason:
        return Verdict(REJECTED, found.reason)
    same = same_body(found.identity)
    if same is None:
        if not is_new_place:
            return _CONFLICT_STREAM
        if found.closes:
            stream.closed_seq = found.stream_seq
        return _ACCEPTED
    if same:
        return _DUPLICATE_IDENTITY if is_new_place else _DUPLICATE_STREAM
    return _CONFLICT_IDENTITY


class Admission:
    """Admission of one usage log from its beginning on, for whoever checks it.

    Feed it every record in order. Memory: about 200 bytes for each accepted
    record; `bodies` may be any mutable mapping (identity -> digest), so that a
    checker of a large log can keep it on disk.
    """

    def __init__(self, bodies: MutableMapping[bytes, bytes] | None = None) -> None:
        self._bodies: MutableMapping[bytes, bytes] = {} if bodies is None else bodies
        self.streams: dict[str, StreamState] = {}

    def admit(self, key: bytes | None, value: bytes | None) -> Verdict:
        """Disposition and reason of the next record. The key plays no part in version 1."""
        del key
        found = scanning.scan(value)
        if not found.stream_id:
            return Verdict(REJECTED, found.reason)
        stream = self.streams.get(found.stream_id)
        if stream is None:
            stream = self.streams[found.stream_id] = StreamState()
        digest = b"" if found.reason or value is None else scanning.body_digest(value)

        def same_body(identity: bytes) -> bool | None:
            known = self._bodies.get(identity)
            return None if known is None else known == digest

        verdict = decide(found, stream, same_body)
        if verdict.disposition == ACCEPTED:
            self._bodies[found.identity] = digest
        return verdict

    def admit_leaf(self, leaf: Leaf) -> Verdict:
        """Disposition and reason that the next leaf of the log must have.

        Errors: kernel.leaf.LeafError when an aside leaf is not well formed.
        """
        if leaf.aside:
            # Only an oversize value ever stands aside; a smaller one is a broken leaf, and the
            # answer EMPTY agrees with none.
            _, length = aside_of(leaf.value)
            if length > scanning.MAX_VALUE_BYTES:
                return Verdict(REJECTED, scanning.OVERSIZE)
            return Verdict(REJECTED, scanning.EMPTY)
        return self.admit(leaf.key, leaf.value)
