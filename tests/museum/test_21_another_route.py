"""Another route, dialect or method skipped the budget: litellm#12977, #13882.

Here every method that generates meets one gate, by gRPC, by each of OpenAI's
doors, whole and streamed, and in a batch: with nothing left, none starts the
engine, and each says so. (Embeddings are another model's: tests/unit/inference/
test_embedding.py.)
"""

from __future__ import annotations

import asyncio
import json
from itertools import product
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from openai import AsyncOpenAI, RateLimitError
from tests.integration.whole_world import WholeWorld, request

from kernel import grpcs
from kernel.ids import new_id
from tollbook.inference.v1 import inference_pb2
from tollbook.pricing.v1 import accounts_pb2, money_pb2, pricing_pb2
from tollbook.stack import Stack

pytestmark = [pytest.mark.museum, pytest.mark.integration, pytest.mark.engine]

# What generates. A method that is new must be put here, or with those that do not.
GENERATES = {
    "Generate": inference_pb2.GenerateRequest,
    "GenerateOnce": inference_pb2.GenerateOnceRequest,
}
ASKS_ONLY = {"CountTokens", "Embed", "ListModels", "GetConservation"}


async def whole(call: Any) -> None:
    """Take an answer to its end."""
    if hasattr(call, "__aiter__"):
        async for _ in call:
            pass
    else:
        await call


async def give_away(world: WholeWorld, giver: str, getter: str, amount_pico: int) -> None:
    made = accounts_pb2.CreditTransferred(
        transfer_id=new_id("m21"),
        from_account_id=giver,
        to_account_id=getter,
        amount=money_pb2.Amount(currency="USD", amount_pico=str(amount_pico)),
    )
    await world.control.TransferCredit(pricing_pb2.TransferCreditRequest(transfer=made), timeout=30)


async def generated(world: WholeWorld) -> int:
    """Output tokens of all engines, by their own counters, when nobody's are under way."""
    answer = await world.conservation()
    return sum(engine.reading.generation_tokens for engine in answer.engines)


async def test_no_method_generates_without_credit(whole_stack: Stack) -> None:
    whole_stack.up()
    service = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
    assert {method.name for method in service.methods} == {*GENERATES, *ASKS_ONLY}
    poor, later = f"m21-{new_id('a')}"[:60], f"m21-{new_id('b')}"[:60]
    async with WholeWorld(whole_stack) as world:
        await world.publish_prices()
        await world.customers(poor, later)
        # All but a millionth of a cent goes.
        await give_away(world, poor, later, 5 * 10**12 - 10_000)
        before = await generated(world)
        for method, message in GENERATES.items():
            asked = request(poor, new_id("req"), output=20)
            call = getattr(world.inference, method)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await whole(call(message(spec=asked.spec), metadata=world.bearer(poor), timeout=60))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, method
            quota = grpcs.details_of(caught.value, error_details_pb2.QuotaFailure)
            assert quota is not None
            assert [limit.subject for limit in quota.violations] == [f"account:{poor}"]
            # The account that got the credit is served by the same method.
            rich = request(later, new_id("req"), output=3)
            await whole(call(message(spec=rich.spec), metadata=world.bearer(later), timeout=60))
        balance = (await world.balance(poor)).balance
        assert (balance.held.amount_pico, balance.charged.amount_pico) == ("0", "0")
        assert await generated(world) - before == 2 * 3


async def by_http(client: AsyncOpenAI, door: str, stream: bool, output: int) -> None:
    """One request of exactly so many tokens by one of OpenAI's doors, to its end."""
    options: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": output,
        "stream": stream,
        "extra_body": {"ignore_eos": True},
    }
    if door == "chat":
        messages = [{"role": "user", "content": "the toll of a lane"}]
        answer: Any = await client.chat.completions.create(messages=messages, **options)  # type: ignore[arg-type]
    else:
        answer = await client.completions.create(prompt="the toll of a lane", **options)
    if stream:
        async for _ in answer:
            pass


async def in_a_batch(client: AsyncOpenAI) -> str:
    """The error's code of the one line of a batch."""
    line = {
        "custom_id": "one",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "tiny",
            "max_tokens": 5,
            "messages": [{"role": "user", "content": "the toll"}],
        },
    }
    file = await client.files.create(
        file=("lines.jsonl", json.dumps(line).encode()), purpose="batch"
    )
    batch = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    async with asyncio.timeout(120):
        while (done := await client.batches.retrieve(batch.id)).status != "completed":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert done.error_file_id is not None
    (failed,) = (await client.files.content(done.error_file_id)).text.splitlines()
    code: str = json.loads(failed)["response"]["body"]["error"]["code"]
    return code


async def test_no_door_of_http_generates_without_credit(whole_stack: Stack) -> None:
    whole_stack.up()
    poor, later = f"m21-{new_id('c')}"[:60], f"m21-{new_id('d')}"[:60]
    url = f"http://{whole_stack.address('inference-http')}/v1"
    async with WholeWorld(whole_stack) as world:
        await world.publish_prices()
        await world.customers(poor, later)
        # All of it goes: a batch's tier has no price, and needs something to be left all the same.
        await give_away(world, poor, later, 5 * 10**12)
        poor_one, rich_one = (
            AsyncOpenAI(
                base_url=url,
                api_key=dict(world.bearer(name))["authorization"].removeprefix("Bearer "),
                max_retries=0,
                timeout=60,
            )
            for name in (poor, later)
        )
        before = await generated(world)
        async with poor_one, rich_one:
            for door, stream in product(("chat", "text"), (False, True)):
                with pytest.raises(RateLimitError) as refused:
                    await by_http(poor_one, door, stream, 20)
                assert refused.value.code == "insufficient_quota", (door, stream)
                await by_http(rich_one, door, stream, 3)
            assert await in_a_batch(poor_one) == "insufficient_quota"
        balance = (await world.balance(poor)).balance
        assert (balance.held.amount_pico, balance.charged.amount_pico) == ("0", "0")
        assert balance.suspense_entries == 0
        assert await generated(world) - before == 4 * 3
