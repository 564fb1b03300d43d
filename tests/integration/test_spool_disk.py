"""The spool on a file system that is really full: who is under way ends, who comes is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.integration.small_disk import enlarge, small_disk
from tests.unit.inference.spools import run_some

from inference.adapters.spool import Spool
from inference.adapters.spool_segments import Limits
from inference.app.streams import Streams

pytestmark = pytest.mark.integration

SEGMENT_BYTES = 256 * 1024
LIMITS = Limits(SEGMENT_BYTES, retain_bytes=SEGMENT_BYTES, max_bytes=64 * SEGMENT_BYTES)
TOKENS = 4_000


async def test_a_full_disk_closes_admission_and_takes_nothing_from_who_is_under_way() -> None:
    with small_disk(os.getuid(), 1) as disk:
        spool = Spool.open(disk / "spool", LIMITS)
        spool.start()
        streams = Streams(spool.journal, "p/boot1", 4)
        begun = 0
        # Every segment was taken from the disk beforehand, so what is written has its place.
        while spool.reserve(1):
            spool.release(1)
            run_some(spool, streams, begun, 1, TOKENS)
            begun += 1
            await spool.durable()
        assert _free(disk) < SEGMENT_BYTES
        # More than the rest of the segment holds: what is left of the disk has to do.
        while _newest(disk).stat().st_size <= SEGMENT_BYTES:
            run_some(spool, streams, begun, 1, TOKENS)
            begun += 1
            await spool.durable()
        assert not spool.reserve(1)
        assert not spool.failed.done()
        enlarge(disk, 8)
        assert not spool.reserve(1)
        await spool.durable()
        assert spool.reserve(1)
        run_some(spool, streams, begun, 8, TOKENS)
        await spool.close()
        again = Spool.open(disk / "spool", LIMITS)
        kept = [(pending.stream_id, pending.stream_seq) for pending in again.journal.unacked()]
        assert len(kept) == len(set(kept)) == begun + 8
        await again.close()


def _newest(disk: Path) -> Path:
    return max((disk / "spool").glob("*.spool"))


def _free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
