"""Which leaves a reader's filter matches.

Owns the meaning of a filter in plain code, `matches`; the compiled loop in
compiled/reading.py gives the same answer for nearly every leaf and asks here
for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError

from kernel import leaf as leaf_format
from ledger.domain.columns import Numbers
from ledger.domain.compiled import reading
from ledger.domain.leafrun import LeafRun
from tollbook.usage.v1 import usage_pb2 as usage

NANOS: Final = 1_000_000_000
_BEGIN_NS: Final = 0
_END_NS: Final = (1 << 63) - 1


@dataclass(frozen=True)
class LeafFilter:
    """Conditions that a leaf must meet, all of them; an empty one asks for nothing.

    Times are nanoseconds since 1970, `to_ns` exclusive; None asks for nothing.
    """

    account_id: str = ""
    served_model: str = ""
    from_ns: int | None = None
    to_ns: int | None = None
    dispositions: frozenset[int] = frozenset()

    @property
    def about_time(self) -> bool:
        """Whether the event's time matters."""
        return self.from_ns is not None or self.to_ns is not None

    @property
    def about_event(self) -> bool:
        """Whether anything in the usage event matters."""
        return bool(self.account_id or self.served_model or self.about_time)

    def matches(self, data: bytes) -> bool:
        """Whether one leaf does."""
        leaf = leaf_format.decode(data)
        if self.dispositions and leaf.disposition not in self.dispositions:
            return False
        if not self.about_event:
            return True
        event = None if leaf.aside else event_of(leaf.value)
        if event is None:
            return False
        if self.account_id and event.account_id != self.account_id:
            return False
        if self.served_model and event.served_model != self.served_model:
            return False
        if not self.about_time:
            return True
        if not event.HasField("event_time"):
            return False
        at_ns = event.event_time.seconds * NANOS + event.event_time.nanos
        low = self.from_ns if self.from_ns is not None else at_ns
        high = self.to_ns if self.to_ns is not None else at_ns + 1
        return low <= at_ns < high

    def choose(self, run: LeafRun) -> Numbers:
        """Indexes of the leaves that match, in order."""
        verdicts = np.empty(len(run), dtype=np.uint8)
        wanted = np.full(256, not self.dispositions)
        wanted[list(self.dispositions)] = True
        low, high = _BEGIN_NS, 0
        if self.about_time:
            low = max(_BEGIN_NS, self.from_ns if self.from_ns is not None else _BEGIN_NS)
            high = min(_END_NS, self.to_ns if self.to_ns is not None else _END_NS)
            # No instant since 1970 is below its first; 0 would ask for nothing.
            high = max(high, 1) if high > 0 else 1
            low = low if self.to_ns is None or self.to_ns > 0 else 1
        reading.match(
            run.data,
            run.starts,
            run.ends,
            wanted,
            np.frombuffer(self.account_id.encode(), dtype=np.uint8),
            np.frombuffer(self.served_model.encode(), dtype=np.uint8),
            low,
            high,
            verdicts,
        )
        for index in np.flatnonzero(verdicts == reading.UNSURE).tolist():
            verdicts[index] = reading.YES if self.matches(run.leaf(index)) else reading.NO
        return np.flatnonzero(verdicts == reading.YES)


def event_of(value: bytes) -> usage.UsageEvent | None:
    """The usage event of a record's value, if that is what it is."""
    try:
        record = usage.UsageRecord.FromString(value)
        if record.WhichOneof("body") != "usage_event":
            return None
        return usage.UsageEvent.FromString(record.usage_event)
    except DecodeError:
        return None
