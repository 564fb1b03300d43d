"""What a log must be, written as plainly as possible: no index, no batches, no shortcuts.

The fast code is held against this. It shares with it the leaf's layout and the
judgement of a single record (tested by themselves) and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kernel import leaf as leaves
from kernel import merkle
from ledger.domain.batch import Record
from ledger.domain.scan import scan
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.usage.v1 import usage_pb2 as usage


@dataclass
class ReferenceLog:
    """Takes records one by one and remembers everything."""

    entries: list[bytes] = field(default_factory=list)
    accepted: dict[tuple[str, ...], bytes] = field(default_factory=dict)
    seen: dict[str, set[int]] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """Append one record."""
        offset, timestamp_ms, key, value = record
        disposition, reason = self._verdict(value)
        self.entries.append(
            leaves.encode(disposition, reason, offset, timestamp_ms, key or b"", value or b"")
        )

    def _verdict(self, value: bytes | None) -> tuple[int, int]:
        found = scan(value)
        repeated = False
        if found.stream_id:
            numbers = self.seen.setdefault(found.stream_id, set())
            repeated = found.stream_seq in numbers
            numbers.add(found.stream_seq)
        if found.reason:
            return ledger.DISPOSITION_REJECTED, found.reason
        assert value is not None
        identity, body = _identity_and_body(value)
        earlier = self.accepted.get(identity)
        if earlier is not None and earlier != body:
            return ledger.DISPOSITION_CONFLICT, ledger.REASON_IDENTITY_REPEAT
        if earlier is not None:
            reason = ledger.REASON_STREAM_REPEAT if repeated else ledger.REASON_IDENTITY_REPEAT
            return ledger.DISPOSITION_DUPLICATE, reason
        if repeated:
            return ledger.DISPOSITION_CONFLICT, ledger.REASON_STREAM_REPEAT
        self.accepted[identity] = body
        return ledger.DISPOSITION_ACCEPTED, 0

    def counts(self) -> list[int]:
        """Entries by disposition."""
        found = [entry[2] for entry in self.entries]
        return [found.count(disposition) for disposition in (1, 2, 3, 4)]

    def root(self) -> bytes:
        """Root of all entries."""
        return merkle.root_of(merkle.leaf_hash(entry) for entry in self.entries)

    def missing(self, stream_id: str) -> set[int]:
        """Numbers below the highest one that never came."""
        numbers = self.seen[stream_id]
        return set(range(max(numbers))) - numbers


def _identity_and_body(value: bytes) -> tuple[tuple[str, ...], bytes]:
    record = usage.UsageRecord.FromString(value)
    if record.WhichOneof("body") == "usage_event":
        event = usage.UsageEvent.FromString(record.usage_event)
        return ("event", event.account_id, event.event_id), record.usage_event
    return ("place", record.stream_id, str(record.stream_seq)), value
