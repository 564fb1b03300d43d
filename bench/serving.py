"""What callers get of the engine, by each door and in a batch, with the whole stack running.

The same requests by gRPC, by HTTP and in a file of a batch; each is held, counted, spooled,
logged and charged. Rounds alternate between the doors. The engine alone is measured right
after, in a process of its own, with the machine to itself; then the engine inside and a server
of its own (vLLM's) behind the port that the service has, and how long an engine takes to wake
(bench/behind.py). `load` is how busy the machine was when it began.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from typing import Any, Final

import openai

from bench import engine_load
from bench.child import last_line_of
from kernel import grpcs, telemetry
from tollbook.demo import setting
from tollbook.inference.v1 import inference_pb2, inference_pb2_grpc
from tollbook.pricing.v1 import pricing_pb2_grpc
from tollbook.stack import running_stack

# Concurrency, and requests of a round at it.
LEVELS: Final = ((1, 24), (16, 192))
ROUNDS: Final = 3
BATCH_LINES: Final = 1_000
_POLL_S: Final = 0.05


def _body(spec: inference_pb2.GenerationSpec) -> dict[str, Any]:
    return {
        "model": spec.model,
        "prompt": list(spec.tokens.token_ids),
        "max_tokens": spec.sampling.max_tokens,
    }


def by_http(client: openai.AsyncOpenAI) -> engine_load.Ask:
    """Streamed by HTTP, with the official client."""

    async def ask(spec: inference_pb2.GenerationSpec, _salt: str) -> tuple[int, float]:
        tokens, first = 0, 0.0
        stream = await client.completions.create(
            **_body(spec),
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
            extra_headers={"Idempotency-Key": spec.request_id},
        )
        async for chunk in stream:
            first = first or time.perf_counter()
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
        return tokens, first

    return ask


async def _batch(client: openai.AsyncOpenAI) -> dict[str, Any]:
    """Lines a second from the batch's acceptance to its end, results on the disk."""
    specs = engine_load.specs(random.Random("batch"), BATCH_LINES, engine_load.OUTPUT_TOKENS)
    lines = [
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/completions",
                "body": {**_body(spec), "ignore_eos": True},
            }
        )
        for number, spec in enumerate(specs)
    ]
    file = await client.files.create(
        file=("bench.jsonl", "\n".join(lines).encode()), purpose="batch"
    )
    begin = time.perf_counter()
    batch = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    while batch.status != "completed":
        if batch.status not in ("validating", "in_progress", "finalizing"):
            raise RuntimeError(f"the batch is {batch.status}: {batch.errors}")
        await asyncio.sleep(_POLL_S)
        batch = await client.batches.retrieve(batch.id)
    seconds = time.perf_counter() - begin
    counts = batch.request_counts
    if counts is None or counts.completed != BATCH_LINES:
        raise RuntimeError(f"lines failed: {counts}")
    return {
        "lines": BATCH_LINES,
        "lines_per_s": round(BATCH_LINES / seconds),
        "tokens_per_s": round(BATCH_LINES * engine_load.OUTPUT_TOKENS / seconds),
    }


async def _measure(environment: dict[str, str]) -> dict[str, Any]:
    channel = grpcs.channel(environment["TOLLBOOK_INFERENCE_ADDRESS"])
    pricing = grpcs.channel(environment["TOLLBOOK_PRICING_ADDRESS"])
    control: Any = pricing_pb2_grpc.ControlServiceStub(pricing)
    customer = (await setting.set_up(control, taken=()))[0]
    await setting.publish(control, {"tiny": False})
    client = openai.AsyncOpenAI(
        base_url=environment["OPENAI_BASE_URL"], api_key=customer.secret, max_retries=0
    )
    ways = {
        "grpc": engine_load.by_grpc(
            inference_pb2_grpc.InferenceServiceStub(channel), customer.metadata
        ),
        "http": by_http(client),
    }
    seen = {(way, level): engine_load.Samples() for way in ways for level, _ in LEVELS}
    for way, ask in ways.items():
        await engine_load.one_round(ask, f"warm-{way}", 16, 64, engine_load.Samples())
    for number in range(ROUNDS):
        order = list(ways) if number % 2 == 0 else list(reversed(ways))
        for level, requests in LEVELS:
            for way in order:
                salt = f"{way}-{number}"
                await engine_load.one_round(ways[way], salt, level, requests, seen[way, level])
    batch = await _batch(client)
    await client.close()
    await channel.close()
    await pricing.close()
    levels = engine_load.levels_of(seen, ways, [level for level, _ in LEVELS])
    return {"levels": levels, "batch": batch}


def run() -> dict[str, Any]:
    """Measure; gives figures for JSON."""
    telemetry.configure("bench", "WARNING")
    load = os.getloadavg()[0]
    with running_stack() as stack:
        figures = asyncio.run(_measure(stack.environment()))
    for level, (concurrency, requests) in zip(figures["levels"], LEVELS, strict=True):
        words = (str(concurrency), str(requests), str(ROUNDS))
        level["engine_alone"] = last_line_of("bench.alone", *words)
    return {"load": round(load, 2), **figures, "engines": last_line_of("bench.behind")}
