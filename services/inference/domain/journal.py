"""What the spool's records say together: the state that a restart goes on from.

A fold. The running process applies each record as it writes it, a restart
applies the same records as it reads them, and both have the same state. Only
the ids of running requests are folded at a restart alone: the running process
has them already.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from inference.domain import records
from inference.domain.claims import NO_DOUBT
from inference.domain.conservation import EngineBook
from inference.domain.counting import Tally
from inference.domain.embedding import NO_CHOICES, EmbeddingTally

# An answer is kept for whoever asks again until its segment goes, or this many came after it.
MAX_REPLAYS: Final = 100_000
# Engine processes whose account is still shown; the log has all of them.
MAX_ENGINES: Final = 1_000


class Contradiction(Exception):
    """Records that no correct process can have written in this order."""


@dataclass(slots=True)
class Ref:
    """Where a record's frame stands; segment -1 until it is written."""

    segment: int = -1
    offset: int = 0
    length: int = 0


@dataclass(slots=True)
class OpenRequest:
    """A request that is started and not settled."""

    started: records.Started
    ref: Ref
    tally: Tally | EmbeddingTally
    texts: list[list[str]]
    first_token_us: int = 0

    def results(self) -> Sequence[records.ChoiceResult]:
        """What is recorded of its choices."""
        return tuple(
            records.ChoiceResult(choice.token_ids, "".join(texts), choice.finish_reason)
            for choice, texts in zip(self.tally.choices, self.texts, strict=True)
        )


@dataclass(slots=True)
class Replay:
    """A settled request: the digest of its body, and where its answer stands."""

    body_digest: bytes
    ref: Ref


@dataclass(slots=True)
class Stream:
    """A producer stream of this process or of one before it."""

    partition: int
    next_seq: int = 0
    acked_seq: int = -1
    closed: bool = False


@dataclass(slots=True)
class Pending:
    """A record that the broker has not acknowledged."""

    stream_id: str
    stream_seq: int
    ref: Ref


@dataclass
class Journal:
    """The folded state."""

    next_serial: int = 0
    # Requests below it may have been started in a segment that is gone.
    first_serial: int = 0
    open: dict[int, OpenRequest] = field(default_factory=dict)
    replays: OrderedDict[tuple[str, str], Replay] = field(default_factory=OrderedDict)
    outbox: deque[Pending] = field(default_factory=deque)
    streams: dict[str, Stream] = field(default_factory=dict)
    engines: OrderedDict[str, EngineBook] = field(default_factory=OrderedDict)

    def apply(self, record: records.Record, ref: Ref) -> None:
        """Take a record in. Errors: Contradiction."""
        match record:
            case records.Progress():
                self._progress(record)
            case records.Embedded():
                self._embedded(record)
            case records.Started():
                self._started(record, ref)
            case records.Settled():
                self._close(record.serial)
                self.replays[(record.account_id, record.request_id)] = Replay(
                    record.body_digest, ref
                )
                while len(self.replays) > MAX_REPLAYS:
                    self.replays.popitem(last=False)
                self._book(record.engine_id).settle(record.output_tokens)
                self._outbound(record.outbound, ref)
            case records.Withdrawn():
                self._close(record.serial)
            case records.Acked():
                self._acked(record)
            case records.Noted():
                self._noted(record.count)
                if record.outbound is not None:
                    self._outbound(record.outbound, ref)
            case records.Closed():
                self._outbound(record.outbound, ref)
            case records.Booted():
                self._book(record.engine_id)
            case records.Snapshot():
                self._restore(record)

    def snapshot(self) -> records.Snapshot:
        """What the next segment begins with."""
        return records.Snapshot(
            self.next_serial,
            tuple(
                records.StreamPlace(
                    name, stream.partition, stream.next_seq, stream.acked_seq, stream.closed
                )
                for name, stream in self.streams.items()
                # A stream that is closed and wholly acknowledged is history.
                if not (stream.closed and stream.acked_seq == stream.next_seq - 1)
            ),
            tuple(
                records.EnginePlace(count_of(book), book.settled_tokens)
                for book in self.engines.values()
            ),
        )

    def oldest_needed_segment(self) -> int | None:
        """The first segment that a restart could not do without; None when every record may go."""
        needed = [entry.ref.segment for entry in self.open.values()]
        if self.outbox:
            needed.append(self.outbox[0].ref.segment)
        return min((segment for segment in needed if segment >= 0), default=None)

    def forget_segment(self, segment: int) -> None:
        """A segment is gone: the answers that stood in it cannot be given again."""
        while self.replays:
            key = next(iter(self.replays))
            if not 0 <= self.replays[key].ref.segment <= segment:
                return
            del self.replays[key]

    def _started(self, record: records.Started, ref: Ref) -> None:
        if record.serial < self.next_serial:
            raise Contradiction(f"request serial {record.serial} is used twice")
        self.next_serial = record.serial + 1
        self.open[record.serial] = OpenRequest(
            record,
            ref,
            EmbeddingTally(record.prompt_tokens)
            if record.choices == NO_CHOICES
            else Tally(record.prompt_tokens, record.choices),
            [[] for _ in range(record.choices)],
        )

    def _embedded(self, record: records.Embedded) -> None:
        entry = self.open.get(record.serial)
        if entry is None and record.serial < self.first_serial:
            return
        if entry is None or not isinstance(entry.tally, EmbeddingTally):
            raise Contradiction(f"vectors of a request {record.serial} that is not running")
        entry.tally.add(record.tokens, NO_DOUBT)
        entry.first_token_us = entry.first_token_us or record.at_us

    def _progress(self, record: records.Progress) -> None:
        entry = self.open.get(record.serial)
        if entry is None and record.serial < self.first_serial:
            return
        if (
            entry is None
            or isinstance(entry.tally, EmbeddingTally)
            or not 0 <= record.choice < entry.started.choices
        ):
            raise Contradiction(f"progress of a request {record.serial} that is not running")
        total = entry.tally.add(record.choice, record.token_ids)
        if total != record.total_tokens:
            raise Contradiction(
                f"request {record.serial} choice {record.choice}: {total} tokens recorded, "
                f"{record.total_tokens} claimed"
            )
        entry.tally.note_cached(record.choice, record.cached_tokens)
        entry.tally.hand_over(record.choice, record.delivered_tokens)
        entry.texts[record.choice].append(record.text)
        if record.token_ids and not entry.first_token_us:
            entry.first_token_us = record.at_us

    def _close(self, serial: int) -> None:
        if self.open.pop(serial, None) is None and serial >= self.first_serial:
            raise Contradiction(f"request {serial} ends and is not running")

    def _outbound(self, outbound: records.Outbound, ref: Ref) -> None:
        stream = self.streams.setdefault(outbound.stream_id, Stream(outbound.partition))
        if stream.closed or outbound.stream_seq != stream.next_seq:
            raise Contradiction(
                f"stream {outbound.stream_id}: {outbound.stream_seq} follows {stream.next_seq - 1}"
            )
        stream.next_seq += 1
        stream.closed = outbound.closes
        self.outbox.append(Pending(outbound.stream_id, outbound.stream_seq, ref))

    def _acked(self, record: records.Acked) -> None:
        stream = self.streams.get(record.stream_id)
        # The stream may have been closed, acknowledged and left out of a snapshot.
        if stream is None:
            return
        stream.acked_seq = max(stream.acked_seq, record.stream_seq)
        while self.outbox and self._is_acked(self.outbox[0]):
            self.outbox.popleft()

    def _is_acked(self, pending: Pending) -> bool:
        return pending.stream_seq <= self.streams[pending.stream_id].acked_seq

    def unacked(self) -> list[Pending]:
        """Records to send, in order; those acknowledged ahead of an older one are left out."""
        return [pending for pending in self.outbox if not self._is_acked(pending)]

    def _noted(self, count: records.EngineCount) -> None:
        book = self._book(count.engine_id)
        book.count(count.generation_tokens, count.prompt_tokens)
        book.waste = dict(count.waste)
        book.inferred_tokens = count.inferred_tokens
        book.final = book.final or count.final

    def _book(self, engine_id: str) -> EngineBook:
        book = self.engines.get(engine_id)
        if book is None:
            book = self.engines[engine_id] = EngineBook(engine_id)
            while len(self.engines) > MAX_ENGINES:
                self.engines.popitem(last=False)
        return book

    def _restore(self, record: records.Snapshot) -> None:
        if not self.next_serial:
            self.first_serial = record.next_serial
        self.next_serial = max(self.next_serial, record.next_serial)
        for place in record.streams:
            self.streams[place.stream_id] = Stream(
                place.partition, place.next_seq, place.acked_seq, place.closed
            )
        for engine in record.engines:
            self._noted(engine.count)
            self._book(engine.count.engine_id).settled_tokens = engine.settled_tokens


def count_of(book: EngineBook) -> records.EngineCount:
    """A book's counters as a record."""
    return records.EngineCount(
        book.engine_id,
        book.generation_tokens,
        book.prompt_tokens,
        dict(book.waste),
        book.final,
        book.inferred_tokens,
    )
