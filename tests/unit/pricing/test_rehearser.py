"""The process that rates usage again: one call at a time, and none outlives its caller."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from multiprocessing.context import SpawnProcess

import pytest

from kernel.errors import DeadlinePassed, Unavailable
from pricing.adapters.rehearser import Rehearser


async def test_a_call_that_ends_late_ends_its_process_and_the_next_begins_anew() -> None:
    rehearser = Rehearser()
    try:
        first = await rehearser.run(None, os.getpid)
        assert first != os.getpid()
        assert await rehearser.run(None, os.getpid) == first
        with pytest.raises(Unavailable) as failed:
            await rehearser.run(None, int, "no number")
        assert failed.value.reason == "REHEARSAL_FAILED"
        assert "ValueError" in failed.value.message

        slow = asyncio.ensure_future(rehearser.run(None, time.sleep, 600))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as busy:
            await rehearser.run(None, os.getpid)
        assert busy.value.reason == "REHEARSAL_BUSY"
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)

        with pytest.raises(DeadlinePassed):
            await rehearser.run(0.2, time.sleep, 600)
        assert await rehearser.run(None, abs, -3) == 3
    finally:
        rehearser.stop()


async def test_who_leaves_while_the_process_begins_leaves_none_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    start = SpawnProcess.start

    def slowly(process: SpawnProcess) -> None:
        begun.set()
        assert go_on.wait(60)
        start(process)

    rehearser = Rehearser()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(SpawnProcess, "start", slowly)
            leaving = asyncio.ensure_future(rehearser.run(None, time.sleep, 600))
            assert await asyncio.to_thread(begun.wait, 60)
            leaving.cancel()
            # Of a thread: the one who leaves waits for the process that is just being begun.
            letting = threading.Timer(0.2, go_on.set)
            letting.start()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            letting.join()
        # The thread of the call that was left has its end, and asks nothing of the next one's.
        assert await rehearser.run(60, abs, -3) == 3
    finally:
        rehearser.stop()
