"""Vectors from vLLM's pooling runner: one engine request for each input.

Owns the order in which inputs enter the engine. Nothing in it is ever aborted: an input is one
step, and what vLLM counted of it is then certain to have been handed out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from inference import engine as port
from inference.adapters.vllm_errors import refusal_of
from inference.adapters.warm_up import PROMPT_IDS
from kernel import errors


async def embed(
    llm: Any, job: port.EmbedJob, stopped: Callable[[], bool]
) -> AsyncIterator[port.Vectors]:
    """See engine.Engine.embed; `stopped` says that no more inputs are to be begun."""
    left = iter(range(len(job.inputs)))
    running: set[asyncio.Task[port.Vectors]] = set()
    failure: BaseException | None = None
    done = False
    while True:
        while not done and failure is None and len(running) < job.at_once:
            place = None if stopped() else next(left, None)
            done = place is None
            if place is not None:
                running.add(asyncio.create_task(_one(llm, job, place), name="embed"))
        if not running:
            break
        ready, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in ready:
            if task.exception() is None:
                yield task.result()
            else:
                # What its siblings give counts all the same.
                failure = failure or task.exception()
    if failure is not None:
        raise failure


async def warm_up(engine: port.Engine, llm: Any) -> int:
    """See engine.Engine.start. Errors: FailedPrecondition, for a model that gives no vectors."""
    tasks = await llm.get_supported_tasks()
    if "embed" not in tasks:
        raise errors.FailedPrecondition(
            f"TOLLBOOK_ENGINE_TASK=embed: what the model can is {', '.join(tasks)}",
            reason="MODEL_CANNOT_EMBED",
        )
    job = port.EmbedJob("warm-up", port.Target("", "", ""), (PROMPT_IDS,), 0, 1, {})
    return sum([some.tokens async for some in engine.embed(job)])


def check_dimensions(config: Any, dimensions: int) -> None:
    """By vLLM's ModelConfig; see engine.Engine.check_dimensions."""
    allowed, problem = config.matryoshka_dimensions, ""
    if not config.is_matryoshka:
        problem = "the model's vectors cannot be cut: leave dimensions out"
    elif dimensions > config.embedding_size:
        problem = f"the model's vectors have {config.embedding_size} components"
    elif allowed and dimensions not in allowed:
        problem = f"the model's vectors can be cut to {', '.join(map(str, allowed))}"
    if problem:
        raise errors.InvalidArgument.of_field("dimensions", f"dimensions {dimensions}: {problem}")


async def _one(llm: Any, job: port.EmbedJob, place: int) -> port.Vectors:
    from vllm.inputs import tokens_input
    from vllm.pooling_params import PoolingParams

    ids = list(job.inputs[place])
    parameters = PoolingParams(task="embed", dimensions=job.dimensions or None)
    vector: Any = None
    try:
        async for output in llm.encode(
            tokens_input(ids), parameters, f"{job.engine_request_id}/{place}"
        ):
            vector = output.outputs.data
    except Exception as error:
        raise refusal_of(llm, error) from error
    if vector is None or not vector.numel():
        raise port.EngineFailed("the engine gave no vector")
    values = vector.detach().to(device="cpu").float().numpy().astype(np.dtype("<f4"))
    return port.Vectors(place, (values.tobytes(),), len(ids))
