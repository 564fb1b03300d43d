"""An engine's first request: what it generated is counted, what nobody was handed too."""

from __future__ import annotations

import asyncio

from tests.unit.inference.scripted import ScriptedEngine

from inference import engine as port
from inference.adapters.warm_up import PROMPT_IDS, warm_up
from tollbook.inference.v1 import inference_pb2 as inference


async def test_all_that_a_warm_up_generated_is_counted() -> None:
    engine = ScriptedEngine()
    sampling = inference.SamplingParams(ignore_eos=True)
    target = port.Target("tiny", "tiny", "")
    warming = asyncio.create_task(warm_up(engine, target, "form", sampling))
    running = await engine.next_run()
    assert running.job.prompt == port.Prompt(PROMPT_IDS, "form")
    assert (running.job.target, running.job.sampling) == (target, sampling)
    running.events.put_nowait(port.Admitted())
    engine.say(running, 0, [1, 2])
    engine.say(running, 0, [3])
    engine.finish(running, surplus=1)
    assert await warming == engine.counters().generation_tokens == 4
