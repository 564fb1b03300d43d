"""A small spool and requests written to it, from their start to their settling."""

from __future__ import annotations

from pathlib import Path

from inference.adapters.spool import Spool
from inference.adapters.spool_segments import Limits
from inference.app import settlement
from inference.app.streams import Streams
from inference.domain import records
from kernel.clock import timestamp_of
from tollbook.usage.v1 import usage_pb2 as usage

SMALL = Limits(segment_bytes=4_096, retain_bytes=12_000, max_bytes=64_000)


def started(serial: int, account: str = "acct", engine: str = "p/boot1") -> records.Started:
    template = usage.UsageEvent(
        event_id=f"r{serial}", account_id=account, event_time=timestamp_of(1), engine_id=engine
    )
    return records.Started(
        serial=serial,
        account_id=account,
        request_id=f"r{serial}",
        body_digest=bytes(32),
        template=template.SerializeToString(),
        trace_id=b"",
        span_id=b"",
        prompt_tokens=10,
        choices=1,
    )


def progress(serial: int, total: int, ids: list[int], delivered: int = 0) -> records.Progress:
    return records.Progress(serial, 0, total, delivered, 0, 5, ids, "x" * len(ids))


def settled(spool: Spool, streams: Streams, start: records.Started, tokens: int) -> records.Settled:
    event = usage.UsageEvent.FromString(start.template)
    event.quantities.add(unit=usage.UNIT_TOKEN, direction=usage.DIRECTION_OUT, amount=tokens)
    result = records.ChoiceResult(list(range(tokens)), "x" * tokens, 1)
    return settlement.settled(
        streams, start.serial, event, start.body_digest, (b"", b""), (result,)
    )


def run_some(spool: Spool, streams: Streams, first: int, count: int, tokens: int = 3) -> None:
    for serial in range(first, first + count):
        start = started(serial)
        spool.append(start)
        spool.append(progress(serial, tokens, list(range(tokens))))
        spool.append(settled(spool, streams, start, tokens))


async def opened(path: Path, limits: Limits = SMALL) -> Spool:
    spool = Spool.open(path, limits)
    spool.start()
    return spool


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("*.spool"))
