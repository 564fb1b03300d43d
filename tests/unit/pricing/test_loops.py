"""The compiled loops are loaded beside the event loop, once, and what goes wrong is told."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pricing.adapters.loops import load_loops
from pricing.domain import tally


@pytest.fixture(autouse=True)
def _not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, whatever other tests have loaded."""
    monkeypatch.setattr(tally, "_loops", None)


async def test_loading_is_in_a_thread_that_a_stop_does_not_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []
    asked: list[bool] = []

    def prepare(only_kept: bool) -> None:
        threads.append(threading.current_thread())
        asked.append(only_kept)

    monkeypatch.setattr(tally, "prepare", prepare)
    await load_loops(only_kept=True)
    await load_loops()
    assert threads[0] is not threading.current_thread()
    assert threads[0].daemon
    assert asked == [True, False]


async def test_who_asks_while_they_are_loaded_waits_and_does_not_load_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    times: list[bool] = []

    def prepare(only_kept: bool) -> None:
        times.append(only_kept)
        begun.set()
        assert go_on.wait(30)
        monkeypatch.setattr(tally, "_loops", asyncio)

    monkeypatch.setattr(tally, "prepare", prepare)
    first = asyncio.ensure_future(load_loops(only_kept=True))
    assert await asyncio.to_thread(begun.wait, 30)
    second = asyncio.ensure_future(load_loops())
    done, _ = await asyncio.wait([first, second], timeout=0)
    assert not done
    go_on.set()
    await asyncio.gather(first, second)
    assert times == [True]


async def test_loops_that_cannot_be_loaded_are_no_silent_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(only_kept: bool) -> None:
        raise ImportError("no such library")

    monkeypatch.setattr(tally, "prepare", fail)
    with pytest.raises(ImportError, match="no such library"):
        await load_loops()


def test_loops_that_nobody_compiled_yet_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from pricing.domain.compiled import summing

    monkeypatch.setattr(summing, "are_kept", lambda: False)
    tally.prepare(only_kept=True)
    assert not tally.is_ready()
