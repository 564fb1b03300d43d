"""The engine inside and a server of its own behind one port, in turn; and an engine's waking.

Prints one JSON object. Both are up at once and asked in alternating rounds, by the calls that
the service makes: what a server costs is its HTTP, its own process and what we check of it. In a
process of its own, for the engine forks.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.integration.openai_server import openai_server

from bench import engine_load
from inference import engine as port
from inference import tinymodel
from inference.adapters.upstream.engine import UpstreamEngine, UpstreamOptions
from inference.adapters.vllm_engine import VllmEngine
from inference.adapters.vllm_start import VllmOptions
from kernel import telemetry
from tollbook.inference.v1 import inference_pb2 as inference

LEVELS: Final = ((1, 24), (16, 192))
ROUNDS: Final = 3
WAKES: Final = 5
_TARGET: Final = port.Target("tiny", "tiny", "")


def through(engine: port.Engine) -> engine_load.Ask:
    """As the service asks it: rendered, then read to its end."""

    async def ask(spec: inference.GenerationSpec, salt: str) -> tuple[int, float]:
        prompt = await engine.render(spec, salt)
        most = spec.sampling.max_tokens
        job = port.Job(spec.request_id, _TARGET, prompt, spec.sampling, 1, most, {})
        tokens, first = 0, 0.0
        async for event in engine.generate(job):
            if isinstance(event, port.Tokens) and event.token_ids:
                first = first or time.perf_counter()
                tokens += len(event.token_ids)
        return tokens, first

    return ask


async def _wakes(engine: VllmEngine) -> dict[str, Any]:
    """Milliseconds from asleep to the first token of a request that comes then."""
    ask = through(engine)
    asleep_ms: list[float] = []
    first_ms: list[float] = []
    for number in range(WAKES):
        begin = time.perf_counter()
        await engine.suspend()
        asleep_ms.append((time.perf_counter() - begin) * 1000)
        begin = time.perf_counter()
        await engine.resume()
        _, first = await ask(engine_load.spec([3 + number] * engine_load.PROMPT_TOKENS), "wake")
        first_ms.append((first - begin) * 1000)
    return {
        "wakes": WAKES,
        "to_first_token_ms": round(statistics.median(first_ms)),
        "longest_ms": round(max(first_ms)),
        "falling_asleep_ms": round(statistics.median(asleep_ms)),
    }


async def _measure(inside: VllmEngine, home: Path, started_s: float) -> dict[str, Any]:
    async with openai_server(home, home / "model") as server:
        options = UpstreamOptions(server.url, "tiny", "tiny", home / "model")
        engines: dict[str, port.Engine] = {"inside": inside, "server": UpstreamEngine(options)}
        seen = {(name, level): engine_load.Samples() for name in engines for level, _ in LEVELS}
        try:
            for engine in engines.values():
                await engine.start()
                await engine_load.one_round(through(engine), "warm", 16, 64, engine_load.Samples())
            for number in range(ROUNDS):
                order = list(engines) if number % 2 == 0 else list(reversed(engines))
                for level, requests in LEVELS:
                    for name in order:
                        await engine_load.one_round(
                            through(engines[name]),
                            f"{name}-{number}",
                            level,
                            requests,
                            seen[name, level],
                        )
            await engines["server"].stop()
            server.kill()
            wakes = await _wakes(inside)
        finally:
            await inside.stop()
    levels = engine_load.levels_of(seen, engines, [level for level, _ in LEVELS])
    return {"levels": levels, "cold_start_s": round(started_s, 1), "waking": wakes}


def main() -> None:
    """Measure."""
    telemetry.configure("bench", "ERROR")
    with tempfile.TemporaryDirectory(prefix="tollbook-bench-") as scratch:
        home = Path(scratch)
        tinymodel.make(home)
        begin = time.perf_counter()
        inside = VllmEngine(
            VllmOptions(home / "model", threads=1, kv_cache_gib=1, max_running=64, stoppable=True)
        )
        started_s = time.perf_counter() - begin
        figures = asyncio.run(_measure(inside, home, started_s))
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
