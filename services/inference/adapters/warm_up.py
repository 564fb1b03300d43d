"""The first request of an engine, before anybody's."""

from __future__ import annotations

from typing import Any, Final

from inference import engine as port
from tollbook.inference.v1 import inference_pb2 as inference

# A first prompt of a few tokens can crash some CPUs; this many cannot.
PROMPT_IDS: Final = (0,) * 64
_OUTPUT_TOKENS: Final = 4


async def warm_up(
    engine: port.Engine,
    target: port.Target,
    engine_form: Any,
    sampling: inference.SamplingParams,
) -> int:
    """Run it; `engine_form` is the engine's own of PROMPT_IDS. Gives the tokens generated.

    Errors: those of `generate`.
    """
    job = port.Job(
        engine_request_id="warm-up",
        target=target,
        prompt=port.Prompt(PROMPT_IDS, engine_form),
        sampling=sampling,
        choices=1,
        max_tokens=_OUTPUT_TOKENS,
        trace_headers={},
    )
    tokens = 0
    async for event in engine.generate(job):
        if isinstance(event, port.Tokens):
            tokens += len(event.token_ids)
        elif isinstance(event, port.Finished):
            tokens += event.surplus_tokens
    return tokens
