"""Has every compiled loop ready before a worker owns anything.

The first call of a loop compiles it, or reads it from disk: seconds during which nothing else of
the process runs. Within a log's lease that would lose the log to another worker.
"""

from __future__ import annotations

import time
from typing import Final

import structlog
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from kernel.tiles import TILE_WIDTH
from ledger.adapters import records
from ledger.domain import columnar
from ledger.domain.batch import LogState
from ledger.domain.identities import IdentityIndex
from ledger.domain.tree import TreeBuilder
from tollbook.usage.v1 import usage_pb2 as usage

log = structlog.get_logger()

_RECORDS: Final = 2 * TILE_WIDTH
_BATCH_BYTES: Final = 1 << 20


def _answer() -> bytes:
    """What a Fetch answers with: plain records, and one that is left to the scan."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=_BATCH_BYTES,
    )
    for seq in range(_RECORDS):
        event = usage.UsageEvent(
            event_id=f"warm-up-{seq}",
            account_id="warm-up",
            served_model="warm-up",
            provenance=usage.Provenance(model_digest=bytes(32)),
            quantities=[usage.Quantity(unit=usage.UNIT_TOKEN, amount=1)],
            outcome=usage.OUTCOME_COMPLETE,
        )
        event.event_time.seconds = 1
        record = usage.UsageRecord(
            stream_id="warm-up", stream_seq=seq, usage_event=event.SerializeToString()
        )
        builder.append(seq, 0, b"warm-up", record.SerializeToString(), [])
    builder.append(_RECORDS, 0, b"warm-up", b"", [])
    return bytes(builder.build())


def warm_up() -> None:
    """Run each loop once, on records that go nowhere."""
    begun = time.perf_counter()
    state = LogState(TreeBuilder(), 0, IdentityIndex())
    columns, next_offset = records.decode(_answer(), 0)
    reading = columnar.read(columns)
    columnar.plan(state, reading, columnar.find_suspects(state.index, reading), {}, next_offset)
    columnar.find_suspects(state.index, reading)  # now that there is something to find
    log.info("loops ready", seconds=round(time.perf_counter() - begun, 2))
