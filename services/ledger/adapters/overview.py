"""What operators ask of the ledger: who works on which log, what producers' streams lack, and
where leaves are kept.

Reads the tables that speak of work and of segments, and translates; changes
nothing.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from kernel.errors import InvalidArgument
from kernel.placement import partition_of_log
from tollbook.ledger.v1 import ledger_pb2 as pb

DEFAULT_PAGE: Final = 100

_PARTITIONS: Final = (
    "SELECT name, owner, lease_until > now() AS owned, epoch, size, next_offset, end_offset,"
    " end_offset_at, halted FROM log_head WHERE name LIKE 'usage-%' ORDER BY log_id"
)
_SEALED: Final = (
    "SELECT h.name, s.* FROM log_segment s JOIN log_detached USING (log_id, start_position)"
    " JOIN log_head h USING (log_id) WHERE $1 IN ('', h.name)"
)
_KEPT: Final = (
    "SELECT h.name, pg_get_expr(c.relpartbound, c.oid) AS bounds,"
    " pg_total_relation_size(c.oid) AS bytes FROM log_head h"
    " JOIN pg_inherits i ON i.inhparent = format('ledger.log_chunk_%s', h.log_id)::regclass"
    " JOIN pg_class c ON c.oid = i.inhrelid WHERE $1 IN ('', h.name)"
)
_BOUNDS: Final = re.compile(r"FROM \('?(\d+)'?\) TO \('?(\d+)'?\)")
_WORKERS: Final = "SELECT worker_id FROM worker WHERE lease_until > now() ORDER BY worker_id"

# `overdue` as the gap watch sees it: one clock, the database's.
_STREAMS: Final = """
SELECT h.name, p.log_id, p.stream_id, p.next_seq, p.missing, p.closed_seq, p.seen_at, p.gap_since,
    coalesce(p.gap_since < now() - $4::bigint * interval '1 millisecond', false) AS overdue
FROM producer_stream p JOIN log_head h USING (log_id)
WHERE (p.log_id, p.stream_id) > ($1, $2) AND ($3::int IS NULL OR p.log_id = $3)
    AND (NOT $5 OR p.gap_since IS NOT NULL)
ORDER BY p.log_id, p.stream_id LIMIT $6
"""
_OVERDUE: Final = (
    "SELECT count(*) FROM producer_stream"
    " WHERE gap_since < now() - $1::bigint * interval '1 millisecond'"
)


async def partitions(db: Any) -> pb.ListPartitionsResponse:
    """Every usage log with its owner and its lag. Errors: those of database.AWAY."""
    rows = await db.fetch(_PARTITIONS)
    workers = await db.fetch(_WORKERS)
    return pb.ListPartitionsResponse(
        partitions=[_partition(row) for row in rows], workers=[row["worker_id"] for row in workers]
    )


def _partition(row: Any) -> pb.PartitionState:
    end = row["end_offset"]
    return pb.PartitionState(
        log=row["name"],
        partition=partition_of_log(row["name"]) or 0,
        owner=row["owner"],
        owned=bool(row["owner"]) and row["owned"],
        epoch=row["epoch"],
        size=row["size"],
        next_offset=row["next_offset"],
        end_offset=end,
        end_offset_time=_instant(row["end_offset_at"]),
        # What its owner saw may be older than what it has read since.
        lag=None if end is None else max(0, end - row["next_offset"]),
        halted=row["halted"],
    )


async def segments(db: Any, log: str) -> pb.ListSegmentsResponse:
    """Every segment of a log, or of all when it is empty, in order. Errors: those of AWAY."""
    sealed = await db.fetch(_SEALED, log)
    kept = await db.fetch(_KEPT, log)
    found = [
        pb.SegmentState(
            log=row["name"],
            first_position=row["start_position"],
            end_position=row["end_position"],
            sealed=True,
            bytes=row["file_bytes"],
            file=row["file"],
            sha256=row["sha256"],
            start_root=row["start_root"],
            end_root=row["end_root"],
            sealed_time=_instant(row["sealed_at"]),
        )
        for row in sealed
    ]
    for row in kept:
        bounds = _BOUNDS.search(row["bounds"])
        if bounds is None:
            raise ValueError(f"a partition of log {row['name']} has no bounds: {row['bounds']}")
        found.append(
            pb.SegmentState(
                log=row["name"],
                first_position=int(bounds[1]),
                end_position=int(bounds[2]),
                bytes=row["bytes"],
            )
        )
    found.sort(key=lambda item: (item.log, item.first_position))
    return pb.ListSegmentsResponse(segments=found)


async def streams(
    db: Any, request: pb.ListStreamsRequest, log_id: int | None, gap_limit_ms: int
) -> pb.ListStreamsResponse:
    """A page of streams. Errors: InvalidArgument for a page token that is none of ours."""
    after = _read_token(request)
    size = request.page_size or DEFAULT_PAGE
    rows = await db.fetch(_STREAMS, *after, log_id, gap_limit_ms, request.gaps_only, size + 1)
    overdue = await db.fetchval(_OVERDUE, gap_limit_ms)
    page, more = rows[:size], len(rows) > size
    return pb.ListStreamsResponse(
        streams=[_stream(row) for row in page],
        next_page_token=_token(request, page[-1]) if more else "",
        gap_limit_ms=gap_limit_ms,
        overdue_streams=overdue,
    )


def _stream(row: Any) -> pb.ProducerStream:
    missing = ranges_of(row["missing"])
    return pb.ProducerStream(
        log=row["name"],
        stream_id=row["stream_id"],
        last_seq=row["next_seq"] - 1,
        missing=missing,
        missing_count=sum(part.last_seq - part.first_seq + 1 for part in missing),
        closed=row["closed_seq"] is not None,
        seen_time=_instant(row["seen_at"]),
        gap_since=_instant(row["gap_since"]),
        overdue=row["overdue"],
    )


def ranges_of(missing: list[int]) -> list[pb.SeqRange]:
    """Ranges out of the table's first, end, first, end, ..."""
    return [
        pb.SeqRange(first_seq=first, last_seq=end - 1)
        for first, end in zip(missing[::2], missing[1::2], strict=True)
    ]


def _instant(at: dt.datetime | None) -> Timestamp | None:
    if at is None:
        return None
    instant = Timestamp()
    instant.FromDatetime(at)
    return instant


def _scope(request: pb.ListStreamsRequest) -> list[Any]:
    return [request.log, request.gaps_only]


def _token(request: pb.ListStreamsRequest, row: Any) -> str:
    place = [*_scope(request), row["log_id"], row["stream_id"]]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _read_token(request: pb.ListStreamsRequest) -> tuple[int, str]:
    """(log id, stream id) that the page before ended with."""
    if not request.page_token:
        return -1, ""
    try:
        *scope, log_id, stream_id = json.loads(base64.urlsafe_b64decode(request.page_token))
    except ValueError:
        scope, log_id, stream_id = [], None, None
    if scope != _scope(request) or not isinstance(log_id, int) or not isinstance(stream_id, str):
        raise InvalidArgument(
            "the page token is not of this request: take next_page_token of the answer before"
            " and leave the other fields as they were",
            reason="INVALID_PAGE_TOKEN",
        )
    return log_id, stream_id
