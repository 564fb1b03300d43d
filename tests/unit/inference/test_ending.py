"""A stop goes on to its end whatever the disk says of the last records, and tells it."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.unit.inference.spools import opened, started

from inference.app.ending import say_last


class Broker:
    """Whether the flush was waited for; `gone`: it takes nothing."""

    def __init__(self, gone: bool = False) -> None:
        self.asked = False
        self._gone = gone

    async def flushed(self) -> None:
        self.asked = True
        if self._gone:
            await asyncio.Event().wait()


@pytest.mark.parametrize("gone", [False, True])
async def test_the_last_records_are_kept_with_a_broker_and_without(
    tmp_path: Path, gone: bool
) -> None:
    spool = await opened(tmp_path)
    broker = Broker(gone)
    assert await say_last(spool, lambda: spool.append(started(7)), broker.flushed, flush_ms=1)
    assert broker.asked
    await spool.close()
    again = await opened(tmp_path)
    assert list(again.journal.open) == [7]
    await again.close()


async def test_a_disk_that_fails_then_ends_nothing_but_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await opened(tmp_path)
    broker = Broker()

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with capture_logs() as told:
        assert not await say_last(spool, lambda: spool.append(started(7)), broker.flushed)
    assert any(
        one["event"].startswith("the last records are not on the disk")
        and one["error"] == "[Errno 5] Input/output error"
        for one in told
    )
    assert not broker.asked
    await spool.close()


async def test_a_disk_that_hangs_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await opened(tmp_path)
    let = threading.Event()
    real = os.fdatasync

    def hanging(fd: int) -> None:
        assert let.wait(60)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", hanging)
    broker = Broker()
    try:
        done = await say_last(
            spool, lambda: spool.append(started(7)), broker.flushed, durable_ms=20
        )
    finally:
        let.set()
    assert not done
    assert not broker.asked
    await spool.close()
