"""What metering costs: the same requests, the engine alone and through count, spool and broker.

One engine, one process, one run: rounds go through the ways in turn, so that
what else the machine does falls on all. `alone` is vLLM's AsyncLLM as anybody
would use it. `metered` counts each token, has it on the real disk (fdatasync)
before it is given, and sends the events to the real broker. `held` also asks
pricing for a hold before each request, with ledger and pricing at work beside it
on the same processors. The gRPC door is in none of them (`path` has it). Each
model's run ends with conservation: residual 0.

Two models: one so small that the engine's own step is mostly Python, where
metering shows at its worst; and one with the layers of SmolLM2-135M.
TOLLBOOK_BENCH_MODELS names those to run (`tiny,135m`).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import engine_load, trace_load
from bench.child import last_line_of
from bench.engine_load import Samples
from bench.metered import Metered, Switched, Unheld, metered
from bench.usage_load import percentiles
from inference import tinymodel
from inference.adapters.credit import PricingCredit
from inference.adapters.vllm_engine import VllmEngine
from inference.app.gate import Gate
from kernel import grpcs, telemetry
from kernel.clock import SystemClock
from tollbook.demo import setting
from tollbook.inference.v1 import inference_pb2
from tollbook.pricing.v1 import pricing_pb2_grpc
from tollbook.stack import running_stack

WAYS: Final = ("alone", "metered", "held")
# Seven of eight at the most are one account's, and the bench has one.
PARTS: Final = ("topic", "ledger-server", "ledger-worker", "pricing-server", "pricing-projector")
MAX_RUNNING: Final = 80
TRACE_CONCURRENCY: Final = 16
TRACE_REQUESTS: Final = 128


class Size(NamedTuple):
    """A model, the concurrencies to try with the requests of a round at each, and the rounds."""

    shape: tinymodel.Shape
    levels: tuple[tuple[int, int], ...]
    rounds: int
    output_tokens: int
    traces: tuple[str, ...]


SIZES: Final = {
    "tiny": Size(tinymodel.TINY, ((1, 24), (16, 192), (64, 512)), 4, 64, ("azure", "mooncake")),
    "135m": Size(tinymodel.SMALL, ((1, 4), (16, 32), (64, 128)), 3, 32, ()),
}


MODELS: Final = tuple(os.environ.get("TOLLBOOK_BENCH_MODELS", ",".join(SIZES)).split(","))


class _Run:
    """One model's rounds, each of all ways."""

    def __init__(self, plant: Metered, engine: VllmEngine, size: Size, credit: PricingCredit):
        self._credit = credit
        self._size = size
        self._asks = {
            "alone": engine_load.alone(engine),
            "metered": plant.ask("acme"),
            "held": plant.ask("acme"),
        }
        self.probe_tokens = 0

    async def rounds(
        self, switch: Switched, name: str, concurrency: int, count: int
    ) -> dict[str, Samples]:
        """All rounds of one load; which way goes first changes from round to round."""
        seen = {way: Samples() for way in WAYS}
        for number in range(self._size.rounds):
            turn = number % len(WAYS)
            for way in WAYS[turn:] + WAYS[:turn]:
                switch.credit = self._credit if way == "held" else Unheld()
                asked = self._asked(name, f"{way}/{number}/{concurrency}", count)
                tokens = await engine_load.of_specs(
                    self._asks[way], f"{way}/{number}", concurrency, asked, seen[way]
                )
                self.probe_tokens += tokens if way == "alone" else 0
        return seen

    def _asked(self, name: str, salt: str, count: int) -> list[inference_pb2.GenerationSpec]:
        if name in self._size.traces:
            return trace_load.requests(name, salt, count)
        source = random.Random(salt)
        return engine_load.specs(source, count, self._size.output_tokens)


def _figures(seen: Mapping[str, Samples]) -> dict[str, Any]:
    """Medians over rounds, percentiles over requests, and what metering cost round by round.

    `..._adds_ms`: by how much a way's percentile lies above that of the engine alone.
    """
    line: dict[str, Any] = {}
    for way in WAYS:
        line[way] = {
            "tokens_per_s": round(statistics.median(seen[way].tokens_per_s)),
            "first_token_ms": percentiles(seen[way].first_token_ms),
            "request_ms": percentiles(seen[way].request_ms),
        }
    for way in WAYS[1:]:
        line[f"{way}_adds_ms"] = {
            what: {
                share: round(line[way][what][share] - line["alone"][what][share], 1)
                for share in ("p50", "p99")
            }
            for what in ("first_token_ms", "request_ms")
        }
        pairs = zip(seen["alone"].tokens_per_s, seen[way].tokens_per_s, strict=True)
        costs = sorted(100 * (1 - with_it / without) for without, with_it in pairs)
        line[f"{way}_cost_percent"] = {
            "median": round(statistics.median(costs), 1),
            "least": round(costs[0], 1),
            "most": round(costs[-1], 1),
        }
    return line


async def _measure(
    engine: VllmEngine, model: Path, work: Path, size: Size, environment: Mapping[str, str]
) -> dict[str, Any]:
    channel = grpcs.channel(environment["TOLLBOOK_PRICING_ADDRESS"])
    credit = PricingCredit(channel, SystemClock(), "refuse")
    switch = Switched(Unheld())
    broker = (environment["TOLLBOOK_KAFKA"], environment["TOLLBOOK_TOPIC"])
    lines: list[dict[str, Any]] = []
    async with metered(engine, model, work / "spool", switch, Gate(MAX_RUNNING), broker) as plant:
        run = _Run(plant, engine, size, credit)
        loads = [("", concurrency, count) for concurrency, count in size.levels]
        loads += [(name, TRACE_CONCURRENCY, TRACE_REQUESTS) for name in size.traces]
        # What is compiled or fetched at the first use is nobody's cost.
        await run.rounds(switch, "", 16, 16)
        for name, concurrency, count in loads:
            try:
                seen = await run.rounds(switch, name, concurrency, count)
            except FileNotFoundError:
                continue
            lines.append(
                {
                    **({"trace": name} if name else {}),
                    "concurrency": concurrency,
                    "requests": count * size.rounds,
                    **_figures(seen),
                }
            )
        residual = await plant.check(run.probe_tokens)
    await channel.close()
    return {"loads": lines, "residual_tokens": residual}


async def _open_account(environment: Mapping[str, str]) -> None:
    channel = grpcs.channel(environment["TOLLBOOK_PRICING_ADDRESS"])
    control = pricing_pb2_grpc.ControlServiceStub(channel)
    await setting.set_up(control, taken=())
    await setting.publish(control, {"tiny": False})
    await channel.close()


def of_size(name: str) -> dict[str, Any]:
    """One model's figures, on the stack that the environment names. For a process of its own:
    an engine's core is forked from it, before it has a thread or speaks gRPC.
    """
    telemetry.configure("bench", "WARNING")
    size = SIZES[name]
    with tempfile.TemporaryDirectory(prefix="tollbook-bench-") as scratch:
        work = Path(scratch)
        tinymodel.make(work, size.shape)
        begin = time.perf_counter()
        engine = engine_load.engine_of(work / "model", MAX_RUNNING)
        started_s = time.perf_counter() - begin
        measured = asyncio.run(_measure(engine, work / "model", work, size, os.environ))
    return {"engine_start_s": round(started_s, 1), **measured}


def run() -> dict[str, Any]:
    """Measure; gives figures for JSON.

    Errors: CalledProcessError, tokens were not conserved; KeyError, for a model that is none.
    """
    telemetry.configure("bench", "WARNING")
    for name in MODELS:
        SIZES[name]
    with running_stack(parts=PARTS) as stack:
        asyncio.run(_open_account(stack.environment()))
        return {
            name: last_line_of("bench.inference", name, environment=stack.environment())
            for name in MODELS
        }


if __name__ == "__main__":
    print(json.dumps(of_size(sys.argv[1])))
