"""Producer streams: the place that each record of the topic takes and keeps for ever."""

from __future__ import annotations

from typing import Final

from inference.domain.journal import Journal
from inference.domain.records import Outbound
from kernel.placement import partition_of
from tollbook.usage.v1 import usage_pb2 as usage

_NO_TRACE: Final = b""


class Streams:
    """This boot's streams, one for each partition. A stream is never reused.

    A number is taken where the record is appended, with no await between: the
    journal moves on when the record is applied.
    """

    def __init__(self, journal: Journal, boot: str, partitions: int) -> None:
        self._journal = journal
        self.boot = boot
        self.partitions = partitions

    def usage_event(
        self, account_id: str, event: bytes, trace_id: bytes, span_id: bytes
    ) -> Outbound:
        """The next record of the account's partition, with a usage event."""
        return self._next(
            partition_of(account_id, self.partitions),
            account_id,
            usage.UsageRecord(usage_event=event, trace_id=trace_id, span_id=span_id),
        )

    def engine_reading(self, reading: usage.EngineReading) -> Outbound:
        """The next record of the engine's partition, with a reading."""
        return self._next(
            partition_of(reading.engine_id, self.partitions),
            reading.engine_id,
            usage.UsageRecord(engine_reading=reading),
        )

    def closing(self, stream_id: str) -> Outbound:
        """The last record of a stream, this boot's or an earlier one's."""
        stream = self._journal.streams[stream_id]
        record = usage.UsageRecord(
            stream_id=stream_id,
            stream_seq=stream.next_seq,
            stream_close=usage.StreamClose(last_seq=stream.next_seq - 1),
        )
        return Outbound(
            stream.partition,
            stream_id,
            stream_id,
            stream.next_seq,
            _NO_TRACE,
            _NO_TRACE,
            record.SerializeToString(deterministic=True),
            closes=True,
        )

    def open_streams(self) -> list[str]:
        """Streams that have no closing record yet, this boot's included."""
        return [name for name, stream in self._journal.streams.items() if not stream.closed]

    def is_own(self, stream_id: str) -> bool:
        """True for a stream of this boot."""
        return stream_id.rpartition("/")[0] == self.boot

    def _next(self, partition: int, key: str, record: usage.UsageRecord) -> Outbound:
        stream_id = f"{self.boot}/{partition}"
        stream = self._journal.streams.get(stream_id)
        record.stream_id = stream_id
        record.stream_seq = stream.next_seq if stream is not None else 0
        return Outbound(
            partition,
            key,
            stream_id,
            record.stream_seq,
            record.trace_id,
            record.span_id,
            record.SerializeToString(deterministic=True),
        )
