"""The whole path on this machine: from an answer to its charge, and tokens through the service.

Two figures. How long after a caller has its last token the charge stands in its
balance, asked by GetBalance with wait_for_event_id. And tokens a second through
gRPC, everything else of the stack running, beside the engine alone in a process
of its own right after it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any, Final

from bench import engine_load
from bench.child import last_line_of
from bench.usage_load import percentiles
from kernel import grpcs, telemetry
from kernel.ids import new_id
from tollbook.demo import setting
from tollbook.inference.v1 import inference_pb2, inference_pb2_grpc
from tollbook.pricing.v1 import pricing_pb2, pricing_pb2_grpc
from tollbook.stack import running_stack

CONCURRENCY: Final = 16
REQUESTS: Final = 192
ROUNDS: Final = 4
CHARGES: Final = 200


async def _charges(generate: Any, pricing: Any, customer: setting.Customer) -> list[float]:
    """Milliseconds from the last token at the caller to its charge, one request after the other."""
    waits: list[float] = []
    for number in range(CHARGES):
        spec = inference_pb2.GenerationSpec(
            request_id=new_id("charge"),
            model="tiny",
            tokens=inference_pb2.TokenPrompt(token_ids=range(20 + number, 52 + number)),
            sampling=inference_pb2.SamplingParams(max_tokens=4, ignore_eos=True),
        )
        begin = 0.0
        call = generate.Generate(
            inference_pb2.GenerateRequest(spec=spec), metadata=customer.metadata, timeout=60
        )
        async for response in call:
            if response.WhichOneof("event") == "delta":
                begin = time.perf_counter()
        await pricing.GetBalance(
            pricing_pb2.GetBalanceRequest(
                account_id=customer.account_id, wait_for_event_id=spec.request_id
            ),
            timeout=60,
        )
        waits.append((time.perf_counter() - begin) * 1000)
    return waits


async def _measure(environment: dict[str, str]) -> dict[str, Any]:
    inference_channel = grpcs.channel(environment["TOLLBOOK_INFERENCE_ADDRESS"])
    pricing_channel = grpcs.channel(environment["TOLLBOOK_PRICING_ADDRESS"])
    generate: Any = inference_pb2_grpc.InferenceServiceStub(inference_channel)
    pricing: Any = pricing_pb2_grpc.PricingServiceStub(pricing_channel)
    control: Any = pricing_pb2_grpc.ControlServiceStub(pricing_channel)
    customer = (await setting.set_up(control, taken=()))[0]
    await setting.publish(control, {"tiny": False})
    ask = engine_load.by_grpc(generate, customer.metadata)
    await engine_load.one_round(ask, "warm", CONCURRENCY, REQUESTS, engine_load.Samples())
    seen = engine_load.Samples()
    for number in range(ROUNDS):
        await engine_load.one_round(ask, f"grpc-{number}", CONCURRENCY, REQUESTS, seen)
    waits = await _charges(generate, pricing, customer)
    await inference_channel.close()
    await pricing_channel.close()
    return {
        "last_token_to_balance_ms": percentiles(waits),
        "through_grpc": {
            "tokens_per_s": round(statistics.median(seen.tokens_per_s)),
            "first_token_ms": percentiles(seen.first_token_ms),
            "request_ms": percentiles(seen.request_ms),
        },
    }


def run() -> dict[str, Any]:
    """Measure; gives figures for JSON."""
    telemetry.configure("bench", "WARNING")
    with running_stack() as stack:
        figures = asyncio.run(_measure(stack.environment()))
    words = (str(CONCURRENCY), str(REQUESTS), str(ROUNDS))
    alone = last_line_of("bench.alone", *words)["tokens_per_s"]
    figures["engine_alone_tokens_per_s"] = alone
    figures["through_grpc"]["of_engine_alone"] = round(
        figures["through_grpc"]["tokens_per_s"] / alone, 3
    )
    return {"concurrency": CONCURRENCY, "requests": REQUESTS * ROUNDS, **figures}
