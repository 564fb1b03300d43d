"""Another route, dialect or method skipped the budget: litellm#12977, #13882.

Here every method of the inference service that generates meets one gate: with
nothing left, none starts the engine, and each says so the same way.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
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
    """Output tokens of all engines, by their own counters."""
    answer = await world.inference.GetConservation(
        inference_pb2.GetConservationRequest(), metadata=await world.house(), timeout=30
    )
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
