"""What the OpenAI package is told as usage, beside the receipt: the whole stack, priced."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types import CompletionUsage
from tests.integration.pricing_world import again
from tests.integration.whole_world import WholeWorld, counts_of

from kernel.ids import new_id
from tollbook.pricing.v1 import pricing_pb2
from tollbook.stack import Stack
from tollbook.usage.v1 import usage_pb2

pytestmark = [pytest.mark.integration, pytest.mark.engine]

REQUESTS = 500
AT_ONCE = 25


async def ask(client: AsyncOpenAI, name: str, number: int) -> CompletionUsage | None:
    """One request, whole or streamed; gives its usage, or None of one that was left."""
    options: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "the toll of a lane " * (number % 9 + 1)}],
        "max_tokens": number % 30 + 1,
        "n": number % 2 + 1,
        "seed": number,
        "extra_headers": {"Idempotency-Key": name},
    }
    if number % 5 == 0:
        options |= {"max_tokens": 3_000, "extra_body": {"ignore_eos": True}}
        stream = await client.chat.completions.create(stream=True, **options)
        async for _ in stream:
            break
        await stream.close()
        return None
    if number % 5 in (1, 2):
        stream = await client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **options
        )
        used: CompletionUsage = [chunk async for chunk in stream][-1].usage
        return used
    used = (await client.chat.completions.create(**options)).usage
    assert used is not None
    return used


async def test_the_usage_that_is_told_is_the_receipts(whole_stack: Stack) -> None:
    whole_stack.up()
    payer = new_id("payer")[:60]
    async with WholeWorld(whole_stack) as world:
        await world.publish_prices()
        await world.customers(payer)
        secret = dict(world.bearer(payer))["authorization"].removeprefix("Bearer ")
        client = AsyncOpenAI(
            base_url=f"http://{whole_stack.address('inference-http')}/v1",
            api_key=secret,
            max_retries=2,
            timeout=120,
        )
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> tuple[CompletionUsage | None, pricing_pb2.Receipt]:
            name = f"{payer}-{number}"
            async with turns:
                used = await ask(client, name, number)
                await again(lambda: world.balance(payer, event_id=name))
                wanted = pricing_pb2.GetReceiptRequest(account_id=payer, event_id=name)
                answer = await again(lambda: world.pricing.GetReceipt(wanted, timeout=20))
            return used, answer.receipt

        async with client:
            found = await asyncio.gather(*(one(number) for number in range(REQUESTS)))
        charged = Fraction(0)
        for used, receipt in found:
            counts = counts_of([line.leaf for line in receipt.lines])
            total = Fraction(receipt.total.amount_pico)
            assert total == counts.charge(receipt.outcome)
            charged += total
            if used is None:
                assert receipt.outcome == usage_pb2.OUTCOME_CLIENT_ABORT
                continue
            assert used.prompt_tokens_details is not None
            assert (
                used.prompt_tokens,
                used.prompt_tokens_details.cached_tokens or 0,
                used.completion_tokens,
            ) == (counts.plain + counts.cached, counts.cached, counts.output)
        assert sum(used is None for used, _ in found) == REQUESTS // 5
        balance = (await world.balance(payer)).balance
        assert Fraction(balance.charged.amount_pico) == charged
        assert balance.usage.requests == REQUESTS
        await world.check_residual()
