"""What metering costs: the same requests, the engine alone and through count, spool and broker.

One engine, one process, one run: rounds alternate between the two ways, so that
what else the machine does falls on both. The spool is on the real disk with
fdatasync, records go to the real broker, and each round ends with conservation:
residual 0. The gRPC door is not in it. Prompts never repeat within a way, and
the ways have salts of their own, so neither finds the other's cached prefixes.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from inference import engine as port
from inference import tinymodel
from inference.adapters import models
from inference.adapters.publisher import Publisher
from inference.adapters.spool import Spool
from inference.adapters.vllm_engine import VllmEngine
from inference.adapters.vllm_start import VllmOptions
from inference.app.books import Books
from inference.app.credit import Request
from inference.app.gate import Gate
from inference.app.generation import Caller, Reader, World
from inference.app.requests import Requests
from inference.app.streams import Streams
from inference.domain.records import Booted
from kernel import telemetry
from kernel.clock import SystemClock
from kernel.ids import new_id
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.stack import running_stack
from tollbook.usage.v1 import usage_pb2 as usage

PARTITIONS: Final = 4
PROMPT_TOKENS: Final = 64
OUTPUT_TOKENS: Final = 64
VOCABULARY: Final = 1_000
# Concurrency, and requests of a round at it: about as long each.
LEVELS: Final = ((1, 24), (16, 192), (64, 512))
ROUNDS: Final = 4
# Seven of eight at the most are one account's, and the bench has one.
MAX_RUNNING: Final = 80
FLUSH_S: Final = 60


@dataclass
class Samples:
    """What the rounds of one way at one concurrency showed."""

    tokens_per_s: list[float] = field(default_factory=list)
    first_token_ms: list[float] = field(default_factory=list)
    request_ms: list[float] = field(default_factory=list)


Ask = Callable[[inference.GenerationSpec, str], Awaitable[tuple[int, float]]]
"""Sends one request; gives (output tokens, instant of the first one)."""


def _spec(source: random.Random, request_id: str) -> inference.GenerationSpec:
    ids = [source.randrange(3, VOCABULARY) for _ in range(PROMPT_TOKENS)]
    return inference.GenerationSpec(
        request_id=request_id,
        model="tiny",
        tokens=inference.TokenPrompt(token_ids=ids),
        sampling=inference.SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True),
    )


def alone(engine: VllmEngine) -> Ask:
    """vLLM's AsyncLLM as anybody would use it: generate(), deltas, nothing of ours."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    llm: Any = engine.bare()

    async def ask(spec: inference.GenerationSpec, salt: str) -> tuple[int, float]:
        parameters = SamplingParams(
            max_tokens=OUTPUT_TOKENS, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        prompt = {
            "type": "token",
            "prompt_token_ids": list(spec.tokens.token_ids),
            "cache_salt": salt,
        }
        tokens, first = 0, 0.0
        async for output in llm.generate(prompt, parameters, spec.request_id):
            first = first or time.perf_counter()
            tokens += len(output.outputs[0].token_ids)
        return tokens, first

    return ask


def _metered(requests: Requests) -> Ask:
    """Through the registry, the count, the spool and the reader, as the gRPC door does."""
    caller = Caller("bench", "", "bench-key")

    async def ask(spec: inference.GenerationSpec, salt: str) -> tuple[int, float]:
        reader = requests.find(caller, spec)
        assert isinstance(reader, Reader)
        tokens, first = 0, 0.0
        async for response in reader.stream():
            if response.WhichOneof("event") == "delta":
                first = first or time.perf_counter()
                tokens += len(response.delta.token_ids)
        return tokens, first

    return ask


async def one_round(ask: Ask, salt: str, concurrency: int, requests: int, into: Samples) -> None:
    source = random.Random(f"{salt}/{concurrency}/{len(into.tokens_per_s)}")
    specs = [_spec(source, new_id("bench")) for _ in range(requests)]
    waiting = iter(specs)
    tokens = 0

    async def worker() -> None:
        nonlocal tokens
        for spec in waiting:
            begin = time.perf_counter()
            count, first = await ask(spec, salt)
            end = time.perf_counter()
            assert count == OUTPUT_TOKENS, f"{count} tokens of {OUTPUT_TOKENS}"
            tokens += count
            into.first_token_ms.append((first - begin) * 1000)
            into.request_ms.append((end - begin) * 1000)

    begin = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    into.tokens_per_s.append(tokens / (time.perf_counter() - begin))


class _Unheld:
    """Credit that is never asked for: holds cost a call to pricing, which `path` measures."""

    async def hold(self, request: Request) -> str:
        """No hold."""
        del request
        return ""

    def settled(self, hold_id: str) -> None:
        """Nothing is held."""

    def release(self, account_id: str, hold_id: str) -> None:
        """Nothing is held."""


@asynccontextmanager
async def _metering(
    engine: port.Engine, model: Path, warm_up: int, directory: Path, kafka: str, topic: str
) -> AsyncIterator[tuple[Requests, Books]]:
    """The service's parts behind its door, as entrypoints/serving.py puts them together."""
    clock, boot = SystemClock(), f"bench/{new_id('boot')}"
    spool = Spool.open(directory)
    streams = Streams(spool.journal, boot, PARTITIONS)
    spool.append(Booted(boot))
    spool.start()
    publisher = Publisher(spool, kafka, topic, PARTITIONS)
    spool.on_commit = publisher.wake
    books = Books(spool, streams, engine, boot, clock)
    world = World(
        engine,
        boot,
        spool,
        streams,
        books,
        _Unheld(),
        Gate(MAX_RUNNING),
        clock,
        telemetry.tracer("bench"),
    )
    requests = Requests(world, b"bench", max_requests=1_024, max_account_requests=1_024)
    books.in_flight = requests.in_flight
    books.discard(usage.WASTE_KIND_WARM_UP, warm_up)
    spool.count_source = books.changed_count
    requests.admit(models.discover(model, "tiny", None))
    publishing = asyncio.create_task(publisher.run())
    try:
        yield requests, books
        await spool.durable()
        await asyncio.wait_for(publisher.flushed(), FLUSH_S)
    finally:
        publishing.cancel()
        with suppress(asyncio.CancelledError):
            await publishing
        await spool.close()


def _at(samples: list[float], percent: int) -> float:
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]


def _figures(results: dict[tuple[int, str], Samples]) -> list[dict[str, Any]]:
    """Medians over rounds and percentiles over requests, and the cost of metering pair by pair."""
    lines: list[dict[str, Any]] = []
    for concurrency, requests in LEVELS:
        line: dict[str, Any] = {"concurrency": concurrency, "requests": requests * ROUNDS}
        for way in ("alone", "metered"):
            seen = results[concurrency, way]
            line[way] = {
                "tokens_per_s": round(statistics.median(seen.tokens_per_s)),
                "first_token_ms": {
                    "p50": round(_at(seen.first_token_ms, 50), 2),
                    "p99": round(_at(seen.first_token_ms, 99), 2),
                },
                "request_ms": {
                    "p50": round(_at(seen.request_ms, 50), 2),
                    "p99": round(_at(seen.request_ms, 99), 2),
                },
            }
        pairs = zip(
            results[concurrency, "alone"].tokens_per_s,
            results[concurrency, "metered"].tokens_per_s,
            strict=True,
        )
        costs = sorted(100 * (1 - metered / alone) for alone, metered in pairs)
        line["metering_cost_percent"] = {
            "median": round(statistics.median(costs), 1),
            "least": round(costs[0], 1),
            "most": round(costs[-1], 1),
        }
        lines.append(line)
    return lines


async def _measure(
    engine: VllmEngine, model: Path, work: Path, kafka: str, topic: str
) -> dict[str, Any]:
    warm_up = await engine.start()
    alone_tokens = 0
    results = {
        (concurrency, way): Samples() for concurrency, _ in LEVELS for way in ("alone", "metered")
    }
    async with _metering(engine, model, warm_up, work / "spool", kafka, topic) as (requests, books):
        ways = {"alone": alone(engine), "metered": _metered(requests)}
        for way, ask in ways.items():
            await one_round(ask, f"{way}/warm", 16, 64, Samples())
            alone_tokens += 64 * OUTPUT_TOKENS if way == "alone" else 0
        for number in range(ROUNDS):
            for concurrency, count in LEVELS:
                # Each way goes first as often as the other.
                order = list(ways) if number % 2 == 0 else list(reversed(ways))
                for way in order:
                    await one_round(
                        ways[way], f"{way}/{number}", concurrency, count, results[concurrency, way]
                    )
                    alone_tokens += count * OUTPUT_TOKENS if way == "alone" else 0
        await requests.settled()
        # What went past the meter on purpose is a probe's waste; the rest must agree.
        books.discard(usage.WASTE_KIND_PROBE, alone_tokens)
        residual = await books.settled_residual()
    if residual:
        raise RuntimeError(f"tokens are not conserved: residual {residual}")
    return {"levels": _figures(results), "residual_tokens": residual}


def run() -> dict[str, Any]:
    """Measure; gives figures for JSON. Errors: RuntimeError when tokens are not conserved."""
    telemetry.configure("bench", "WARNING")
    with tempfile.TemporaryDirectory(prefix="tollbook-bench-") as scratch:
        work = Path(scratch)
        tinymodel.make(work)
        begin = time.perf_counter()
        # First of all: it forks.
        engine = VllmEngine(
            VllmOptions(work / "model", threads=1, kv_cache_gib=1, max_running=MAX_RUNNING)
        )
        started_s = time.perf_counter() - begin
        with running_stack(parts=("kafka", "topic")) as stack:
            environment = stack.environment()
            figures = asyncio.run(
                _measure_and_stop(
                    engine,
                    work,
                    environment["TOLLBOOK_KAFKA"],
                    environment["TOLLBOOK_TOPIC"],
                )
            )
    return {"engine_start_s": round(started_s, 1), **figures}


async def _measure_and_stop(
    engine: VllmEngine, work: Path, kafka: str, topic: str
) -> dict[str, Any]:
    try:
        return await _measure(engine, work / "model", work, kafka, topic)
    finally:
        await engine.stop()
