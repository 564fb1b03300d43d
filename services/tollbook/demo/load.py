"""The demo's requests: real ones over gRPC, some cancelled midway, as a caller would send them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from tollbook.demo.lengths import Lengths
from tollbook.demo.setting import Customer
from tollbook.inference.v1 import inference_pb2

CONCURRENCY: Final = 16
CANCEL_EVERY: Final = 10
_TIMEOUT_S: Final = 120
# Ids of ordinary tokens of the tiny model; 0 to 15 may be special.
_FIRST_ID: Final = 16
_LAST_ID: Final = 400
_SHARED_PREFIX_TOKENS: Final = 64


@dataclass
class Sent:
    """What became of the requests, as their callers saw it."""

    completed: int = 0
    cancelled: int = 0
    output_tokens_seen: int = 0


def _spec(index: int, model: str, lengths: Lengths) -> inference_pb2.GenerationSpec:
    source = random.Random(index)  # noqa: S311 - prompts, no secret
    # A third of the prompts begin alike, as real system prompts do, so that the cache has hits.
    prefix = list(range(_FIRST_ID, _FIRST_ID + _SHARED_PREFIX_TOKENS)) if index % 3 == 0 else []
    ids = prefix + [source.randint(_FIRST_ID, _LAST_ID) for _ in range(lengths.prompt_tokens)]
    return inference_pb2.GenerationSpec(
        request_id=f"demo-{index:04d}",
        model=model,
        tokens=inference_pb2.TokenPrompt(token_ids=ids[: lengths.prompt_tokens]),
        sampling=inference_pb2.SamplingParams(
            max_tokens=lengths.output_tokens, temperature=0.8, seed=index, ignore_eos=True
        ),
    )


async def _stream(stub: Any, spec: Any, metadata: Any, cancel: bool, sent: Sent) -> None:
    call = stub.Generate(
        inference_pb2.GenerateRequest(spec=spec), metadata=metadata, timeout=_TIMEOUT_S
    )
    try:
        async for message in call:
            if message.WhichOneof("event") == "delta":
                sent.output_tokens_seen += len(message.delta.token_ids)
                if cancel:
                    call.cancel()
    except asyncio.CancelledError:
        # Our own cancel comes back as this; a cancel from outside must go on its way.
        if not call.cancelled():
            raise
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED:
            raise
    if call.cancelled():
        sent.cancelled += 1
    else:
        sent.completed += 1


async def _once(stub: Any, spec: Any, metadata: Any, sent: Sent) -> None:
    answer = await stub.GenerateOnce(
        inference_pb2.GenerateOnceRequest(spec=spec), metadata=metadata, timeout=_TIMEOUT_S
    )
    sent.output_tokens_seen += answer.usage.output_tokens
    sent.completed += 1


async def send_all(
    stub: Any,
    customers: Sequence[Customer],
    models: Sequence[str],
    shapes: Sequence[Lengths],
    half_way: Callable[[], Awaitable[None]],
) -> Sent:
    """Send a request for each shape, CONCURRENCY at a time; `half_way` runs once in the middle."""
    sent = Sent()
    room = asyncio.Semaphore(CONCURRENCY)

    async def one(index: int, lengths: Lengths) -> None:
        async with room:
            customer = customers[index % len(customers)]
            spec = _spec(index, models[index % len(models)], lengths)
            cancel = index % CANCEL_EVERY == 1
            # Whether to stream must not go in step with model, customer or cancelling.
            if cancel or index // 4 % 2:
                if cancel:
                    # Long enough that the cancel meets a generation under way.
                    spec.sampling.max_tokens = max(spec.sampling.max_tokens, 200)
                await _stream(stub, spec, customer.metadata, cancel, sent)
            else:
                await _once(stub, spec, customer.metadata, sent)
        if index == len(shapes) // 2:
            await half_way()

    async with asyncio.TaskGroup() as tasks:
        for index, lengths in enumerate(shapes):
            tasks.create_task(one(index, lengths))
    return sent
