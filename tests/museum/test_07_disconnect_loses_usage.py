"""A caller that went away took its usage with it: litellm#14457, #13245, new-api#7062, #5235.

Here a stream is left at every chunk: its bill is what the engine's own counter grew by, and its
receipt is the price of exactly that.
"""

from __future__ import annotations

import pytest
from tests.integration.whole_world import WholeWorld, counts_of, request

from kernel.ids import new_id
from tollbook.stack import Stack
from tollbook.usage.v1 import usage_pb2

pytestmark = [pytest.mark.museum, pytest.mark.integration, pytest.mark.engine]

CHUNKS = 12
# As long as the context allows: nothing is to be over before its caller leaves.
LONG = 3_900


async def generated(world: WholeWorld) -> int:
    """Output tokens by the engines' own counters, with nothing in flight."""
    answer = await world.conservation()
    return sum(engine.reading.generation_tokens for engine in answer.engines)


async def test_left_at_every_chunk_the_bill_is_the_engines_count(whole_stack: Stack) -> None:
    whole_stack.up()
    account = f"m7-{new_id('a')}"[:60]
    async with WholeWorld(whole_stack) as world:
        await world.publish_prices()
        await world.customers(account)
        left = []
        before = await generated(world)
        for chunk in range(1, CHUNKS + 1):
            asked = request(account, new_id("req"), chunk, output=LONG, leave_after=chunk)
            # Left, then asked for again by its id: the settled end is told.
            left.append(await world.ask(asked))
            after = await generated(world)
            assert asked.summary is not None
            counts = counts_of(asked.summary.quantities)
            assert asked.summary.outcome == usage_pb2.OUTCOME_CLIENT_ABORT
            assert chunk <= asked.most_seen <= counts.output < LONG
            assert after - before == counts.output
            before = after
        await world.check_everything(left)
