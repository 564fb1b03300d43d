"""The engine alone, in a process of its own: the baseline of what goes through the service.

Prints one JSON object: tokens a second, the median of its rounds, and milliseconds to the first
token.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path

from bench import engine_load
from bench.usage_load import percentiles
from inference import tinymodel
from inference.adapters.vllm_engine import VllmEngine
from kernel import telemetry


async def _rounds(
    engine: VllmEngine, concurrency: int, requests: int, rounds: int
) -> engine_load.Samples:
    await engine.start()
    try:
        ask = engine_load.alone(engine)
        await engine_load.one_round(ask, "warm", concurrency, requests, engine_load.Samples())
        seen = engine_load.Samples()
        for number in range(rounds):
            await engine_load.one_round(ask, f"round-{number}", concurrency, requests, seen)
        return seen
    finally:
        await engine.stop()


def main() -> None:
    """Measure with the concurrency, requests and rounds that the command line gives."""
    concurrency, requests, rounds = (int(word) for word in sys.argv[1:4])
    telemetry.configure("bench", "WARNING")
    with tempfile.TemporaryDirectory(prefix="tollbook-bench-") as scratch:
        tinymodel.make(Path(scratch))
        engine = engine_load.engine_of(Path(scratch) / "model", 64)
        seen = asyncio.run(_rounds(engine, concurrency, requests, rounds))
    figures = {
        "tokens_per_s": round(statistics.median(seen.tokens_per_s)),
        "first_token_ms": percentiles(seen.first_token_ms),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
