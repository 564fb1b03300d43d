"""The broker away under load: what callers see, what memory does, how long catching up takes.

TOLLBOOK_OUTAGE_S says for how long (60). Requests go on all the time, before,
during and after; a request that fails ends the bench.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil

from bench import engine_load
from bench.metered import Metered, Unheld, metered
from bench.usage_load import percentiles
from inference import tinymodel
from inference.adapters.vllm_engine import VllmEngine
from inference.app.gate import Gate
from kernel import telemetry
from tollbook.stack import Stack, running_stack

OUTAGE_S: Final = int(os.environ.get("TOLLBOOK_OUTAGE_S", "60"))
BEFORE_S: Final = 20
CONCURRENCY: Final = 16
OUTPUT_TOKENS: Final = 16
CATCH_UP_S: Final = 300
MAX_RUNNING: Final = 32


class _Load:
    """Requests without end, and when each took how long."""

    def __init__(self, plant: Metered) -> None:
        self._ask = plant.ask()
        self.times: list[tuple[float, float]] = []
        self._going = True
        self._tasks = [asyncio.create_task(self._member(n)) for n in range(CONCURRENCY)]

    async def _member(self, number: int) -> None:
        source = random.Random(number)
        while self._going:
            (spec,) = engine_load.specs(source, 1, OUTPUT_TOKENS)
            begin = time.perf_counter()
            tokens, _ = await self._ask(spec, "")
            assert tokens == OUTPUT_TOKENS
            end = time.perf_counter()
            self.times.append((end, (end - begin) * 1000))

    async def go_on(self, seconds: float) -> None:
        """Let it go on. Errors: what a request failed with."""
        done, _ = await asyncio.wait(
            self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()

    async def for_s(self, seconds: float) -> dict[str, Any]:
        """Let it go on; gives what it was like. Errors: what a request failed with."""
        begin = time.perf_counter()
        await self.go_on(seconds)
        took = [ms for at, ms in self.times if at >= begin]
        return {
            "seconds": round(seconds),
            "requests": len(took),
            "per_s": round(len(took) / seconds, 1),
            "request_ms": percentiles(took),
        }

    async def stop(self) -> None:
        """Let what is under way end, and nothing follow."""
        self._going = False
        await asyncio.gather(*self._tasks)


def _rss_mib() -> float:
    return round(float(psutil.Process().memory_info().rss) / 2**20, 1)


async def _measure(engine: VllmEngine, work: Path, stack: Stack) -> dict[str, Any]:
    environment = stack.environment()
    broker = (environment["TOLLBOOK_KAFKA"], environment["TOLLBOOK_TOPIC"])
    gate = Gate(MAX_RUNNING)
    figures: dict[str, Any] = {}
    async with metered(engine, work / "model", work / "spool", Unheld(), gate, broker) as plant:
        load = _Load(plant)
        await load.go_on(5)
        figures["before"] = {**await load.for_s(BEFORE_S), "rss_mib": _rss_mib()}
        await asyncio.to_thread(stack.hold, "kafka")
        begin_mib = _rss_mib()
        steps = []
        for _ in range(6):
            seen = await load.for_s(OUTAGE_S / 6)
            steps.append({**seen, "rss_mib": _rss_mib(), "backlog": await plant.backlog()})
        figures["away"] = steps
        figures["away_rss_growth_mib"] = round(steps[-1]["rss_mib"] - begin_mib, 1)
        await asyncio.to_thread(stack.release, "kafka")
        back = time.perf_counter()
        behind = steps[-1]["backlog"]
        async with asyncio.timeout(CATCH_UP_S):
            while await plant.backlog() > CONCURRENCY:
                await load.go_on(0.2)
        figures["catch_up"] = {
            "records": behind,
            "seconds": round(time.perf_counter() - back, 1),
            "rss_mib": _rss_mib(),
        }
        await load.stop()
        await plant.check(0)
    return figures


def run() -> dict[str, Any]:
    """Measure; gives figures for JSON. Errors: what a request failed with, lost tokens."""
    telemetry.configure("bench", "ERROR")
    with tempfile.TemporaryDirectory(prefix="tollbook-bench-") as scratch:
        work = Path(scratch)
        tinymodel.make(work)
        # First of all: it forks.
        engine = engine_load.engine_of(work / "model", MAX_RUNNING)
        with running_stack(parts=("kafka", "topic")) as stack:
            return asyncio.run(_measure(engine, work, stack))
