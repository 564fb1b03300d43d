"""One account floods; what another one's requests take then.

The quiet account sends one request at a time. Three states of the other one, in
turn: absent; working (as many requests under way as it may have places, none
waiting: the engine full, nobody crowding); flooding (FLOOD at once, most of them
waiting). All of it twice: with turns, and with the gate open, so that the engine's
own first come, first served decides. What turns are for is the step from `working`
to `flooding`; the step from `absent` to `working` is the processor's.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench import engine_load
from bench.child import last_line_of
from bench.metered import Metered, Unheld, metered
from bench.usage_load import percentiles
from inference import tinymodel
from inference.adapters.vllm_engine import VllmEngine
from inference.app.gate import Gate
from kernel import telemetry
from tollbook.stack import running_stack

MAX_RUNNING: Final = 32
# What an account may have of them.
WORKING: Final = MAX_RUNNING - MAX_RUNNING // 8
FLOOD: Final = 512
OPEN: Final = 10_000
QUIET_REQUESTS: Final = 40
ROUNDS: Final = 4
OUTPUT_TOKENS: Final = 32


class _Crowd:
    """An account that always has so many requests under way."""

    def __init__(self, plant: Metered, size: int, seed: str) -> None:
        self._ask = plant.ask("crowd")
        self._source = random.Random(seed)
        self._going = True
        self._tasks = [asyncio.create_task(self._member()) for _ in range(size)]

    async def _member(self) -> None:
        while self._going:
            (spec,) = engine_load.specs(self._source, 1, OUTPUT_TOKENS)
            await self._ask(spec, "")

    async def gone(self) -> None:
        """Let what is under way end, and nothing follow."""
        self._going = False
        await asyncio.gather(*self._tasks)


def _quiet_specs(seed: str) -> Iterator[Any]:
    yield from engine_load.specs(random.Random(seed), QUIET_REQUESTS, OUTPUT_TOKENS)


async def _quiet(plant: Metered, seed: str, into: engine_load.Samples) -> None:
    ask = plant.ask("quiet")
    for spec in _quiet_specs(seed):
        begin = time.perf_counter()
        _, first = await ask(spec, "")
        into.first_token_ms.append((first - begin) * 1000)
        into.request_ms.append((time.perf_counter() - begin) * 1000)


async def _state(plant: Metered, crowd: int, seed: str, into: engine_load.Samples) -> None:
    others = _Crowd(plant, crowd, seed)
    # Until the crowd has what it may have of the engine.
    while plant.requests.in_flight()[0] < crowd:  # noqa: ASYNC110 - it has no event for this
        await asyncio.sleep(0.01)
    await _quiet(plant, seed, into)
    await others.gone()
    await plant.requests.settled()


async def _rounds(
    engine: VllmEngine, work: Path, gate: Gate, broker: tuple[str, str], states: dict[str, int]
) -> dict[str, engine_load.Samples]:
    seen = {name: engine_load.Samples() for name in states}
    async with metered(engine, work / "model", work / "spool", Unheld(), gate, broker) as plant:
        await _state(plant, WORKING, "warm", engine_load.Samples())
        for number in range(ROUNDS):
            for name, crowd in states.items():
                await _state(plant, crowd, f"{name}/{number}", seen[name])
        await plant.check(0)
    return seen


def of_gate(kind: str, kafka: str, topic: str) -> dict[str, Any]:
    """One gate's figures; for a process of its own, from which an engine's core is forked."""
    telemetry.configure("bench", "WARNING")
    states = {"absent": 0, "working": WORKING, "flooding": FLOOD}
    with tempfile.TemporaryDirectory(prefix="tollbook-bench-") as scratch:
        work = Path(scratch)
        tinymodel.make(work)
        engine = engine_load.engine_of(work / "model", MAX_RUNNING)
        gate = Gate(MAX_RUNNING if kind == "turns" else OPEN)
        seen = asyncio.run(_rounds(engine, work, gate, (kafka, topic), states))
    figures: dict[str, Any] = {
        name: {
            "first_token_ms": percentiles(samples.first_token_ms),
            "request_ms": percentiles(samples.request_ms),
        }
        for name, samples in seen.items()
    }
    for base in ("absent", "working"):
        figures[f"request_p99_flooding_over_{base}"] = round(
            figures["flooding"]["request_ms"]["p99"] / figures[base]["request_ms"]["p99"], 2
        )
    return figures


def run() -> dict[str, Any]:
    """Measure; gives figures for JSON. Errors: CalledProcessError, tokens were not conserved."""
    telemetry.configure("bench", "WARNING")
    with running_stack(parts=("kafka", "topic")) as stack:
        environment = stack.environment()
        broker = (environment["TOLLBOOK_KAFKA"], environment["TOLLBOOK_TOPIC"])
        return {
            "places": MAX_RUNNING,
            "flood": FLOOD,
            "turns": last_line_of("bench.flood", "turns", *broker),
            "first_come": last_line_of("bench.flood", "first_come", *broker),
        }


if __name__ == "__main__":
    print(json.dumps(of_gate(*sys.argv[1:4])))
