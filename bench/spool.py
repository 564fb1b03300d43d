"""The spool's records to the disk, beside a plain loop of append and fdatasync.

The same frames on the same disk in one run, the ways in turn: one fdatasync for
each record; one for each group of the size that the spool was seen to make; and
the spool itself, under producers that each wait until theirs is durable, as a
request does at each of its steps.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from inference.adapters import spool_codec
from inference.adapters.spool import Spool
from inference.domain import records

PRODUCERS: Final = (1, 16, 64, 512)
SECONDS: Final = 1.5
ROUNDS: Final = 3
IDS: Final = (17,) * 4


def _progress(serial: int) -> records.Progress:
    return records.Progress(serial, 0, len(IDS), 0, 0, 1, IDS, "four words of text")


def plain(path: Path, group: int) -> float:
    """Records/s of append and fdatasync, `group` records at a time."""
    frames = spool_codec.encode(_progress(0)) * group
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, 64 << 20)
        count, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) - begin < SECONDS and count * len(frames) < 64 << 20:
            os.write(fd, frames)
            os.fdatasync(fd)
            count += group
        return count / (now - begin)
    finally:
        os.close(fd)


async def spooled(directory: Path, producers: int) -> tuple[float, float]:
    """(records/s, records a group) of the spool under so many producers."""
    spool = Spool.open(directory)
    spool.start()
    groups = count = 0

    def committed() -> None:
        nonlocal groups
        groups += 1

    spool.on_commit = committed
    begin = time.perf_counter()

    async def produce(serial: int) -> None:
        nonlocal count
        while time.perf_counter() - begin < SECONDS:
            spool.append(_progress(serial))
            await spool.durable()
            count += 1

    await asyncio.gather(*(produce(serial) for serial in range(producers)))
    seconds = time.perf_counter() - begin
    await spool.close()
    return count / seconds, count / max(1, groups)


def run() -> dict[str, Any]:
    """Measure; gives figures for JSON."""
    with tempfile.TemporaryDirectory(prefix="tollbook-bench-") as scratch:
        work = Path(scratch)
        lines = []
        for producers in PRODUCERS:
            seen: list[tuple[float, float]] = []
            single: list[float] = []
            grouped: list[float] = []
            for number in range(ROUNDS):
                seen.append(asyncio.run(spooled(work / f"{producers}-{number}", producers)))
                single.append(plain(work / "plain", 1))
                grouped.append(plain(work / "plain", max(1, round(seen[-1][1]))))
            lines.append(
                {
                    "producers": producers,
                    "spool_records_per_s": round(statistics.median(rate for rate, _ in seen)),
                    "records_a_group": round(statistics.median(size for _, size in seen), 1),
                    "plain_append_each_per_s": round(statistics.median(single)),
                    "plain_append_groups_per_s": round(statistics.median(grouped)),
                }
            )
    return {"frame_bytes": len(spool_codec.encode(_progress(0))), "levels": lines}
