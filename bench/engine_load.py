"""Requests to an engine, however they reach it, timed: what the benches of serving share.

Prompts never repeat within a way, and the ways have salts of their own, so neither
finds the other's cached prefixes.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.usage_load import percentiles
from inference.adapters.vllm_engine import VllmEngine
from inference.adapters.vllm_start import VllmOptions
from kernel.ids import new_id
from tollbook.inference.v1 import inference_pb2 as inference

PROMPT_TOKENS: Final = 64
OUTPUT_TOKENS: Final = 64
VOCABULARY: Final = 1_000


@dataclass
class Samples:
    """What the rounds of one way at one concurrency showed."""

    tokens_per_s: list[float] = field(default_factory=list)
    first_token_ms: list[float] = field(default_factory=list)
    request_ms: list[float] = field(default_factory=list)


Ask = Callable[[inference.GenerationSpec, str], Awaitable[tuple[int, float]]]
"""Sends one request; gives (output tokens, instant of the first one)."""


def spec(prompt: Sequence[int], output_tokens: int = OUTPUT_TOKENS) -> inference.GenerationSpec:
    """A request for exactly so many tokens."""
    return inference.GenerationSpec(
        request_id=new_id("bench"),
        model="tiny",
        tokens=inference.TokenPrompt(token_ids=prompt),
        sampling=inference.SamplingParams(max_tokens=output_tokens, ignore_eos=True),
    )


def specs(source: random.Random, count: int, output_tokens: int) -> list[inference.GenerationSpec]:
    """Requests of one length, no two alike."""
    return [
        spec([source.randrange(3, VOCABULARY) for _ in range(PROMPT_TOKENS)], output_tokens)
        for _ in range(count)
    ]


def alone(engine: VllmEngine) -> Ask:
    """vLLM's AsyncLLM as anybody would use it: generate(), deltas, nothing of ours."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    llm: Any = engine.bare()

    async def ask(spec: inference.GenerationSpec, salt: str) -> tuple[int, float]:
        parameters = SamplingParams(
            max_tokens=spec.sampling.max_tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
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


async def read(stream: AsyncIterable[inference.GenerateResponse]) -> tuple[int, float]:
    """Read a stream of the service to its end; gives what an Ask does."""
    tokens, first = 0, 0.0
    async for response in stream:
        if response.WhichOneof("event") == "delta":
            first = first or time.perf_counter()
            tokens += len(response.delta.token_ids)
    return tokens, first


def by_grpc(stub: Any, metadata: Sequence[tuple[str, str]]) -> Ask:
    """Streamed by gRPC."""

    async def ask(spec: inference.GenerationSpec, _salt: str) -> tuple[int, float]:
        request = inference.GenerateRequest(spec=spec)
        return await read(stub.Generate(request, metadata=metadata, timeout=120))

    return ask


def engine_of(model: Path, max_running: int) -> VllmEngine:
    """An engine as all benches have it. It forks: first of all in a process."""
    return VllmEngine(VllmOptions(model, threads=1, kv_cache_gib=1, max_running=max_running))


async def of_specs(
    ask: Ask,
    salt: str,
    concurrency: int,
    asked: Sequence[inference.GenerationSpec],
    into: Samples,
) -> int:
    """Send them all, so many at once; gives the tokens that came."""
    waiting = iter(asked)
    tokens = 0

    async def worker() -> None:
        nonlocal tokens
        for one in waiting:
            begin = time.perf_counter()
            count, first = await ask(one, salt)
            end = time.perf_counter()
            wanted = one.sampling.max_tokens
            assert count == wanted, f"{count} tokens of {wanted}"
            tokens += count
            into.first_token_ms.append((first - begin) * 1000)
            into.request_ms.append((end - begin) * 1000)

    begin = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    into.tokens_per_s.append(tokens / (time.perf_counter() - begin))
    return tokens


async def one_round(
    ask: Ask,
    salt: str,
    concurrency: int,
    requests: int,
    into: Samples,
    output_tokens: int = OUTPUT_TOKENS,
) -> int:
    """A round of requests of one length; gives the tokens that came."""
    source = random.Random(f"{salt}/{concurrency}/{len(into.tokens_per_s)}")
    return await of_specs(ask, salt, concurrency, specs(source, requests, output_tokens), into)


def levels_of(
    seen: Mapping[tuple[str, int], Samples], ways: Iterable[str], levels: Sequence[int]
) -> list[dict[str, Any]]:
    """By how many are asked at once: each way's median tokens/s, and its waits for a token."""
    names = list(ways)
    return [
        {
            "concurrency": level,
            **{
                name: {
                    "tokens_per_s": round(statistics.median(seen[name, level].tokens_per_s)),
                    "first_token_ms": percentiles(seen[name, level].first_token_ms),
                }
                for name in names
            },
        }
        for level in levels
    ]
