"""A batch was billed once for each poll, or never: litellm#37050, #36939.

Here five poll all the time, over a kill -9 of the service in the middle, and each line has one
answer and one charge at the batch's price. What the crash took from the engine is run again and
not charged twice.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import Any

import grpc
import openai
import pytest
from tests.integration.whole_world import PATIENCE_S, WholeWorld, counts_of

from kernel.ids import new_id
from tollbook.pricing.v1 import pricing_pb2
from tollbook.stack import Stack

pytestmark = [
    pytest.mark.museum,
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.timeout(600),
]

LINES, TOKENS, POLLERS = 120, 100, 5
BATCHES_MOST = 5


def batch_file() -> bytes:
    """Requests that each take a while."""
    lines = [
        {
            "custom_id": f"line {number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {
                "model": "tiny",
                "prompt": [20 + number, 21, 22, 23],
                "max_tokens": TOKENS,
                "ignore_eos": True,
            },
        }
        for number in range(LINES)
    ]
    return "\n".join(json.dumps(line) for line in lines).encode()


class Pollers:
    """Ask for the batch until it has ended, whatever becomes of the service."""

    def __init__(self, client: openai.AsyncOpenAI, batch_id: str) -> None:
        self._client = client
        self._batch_id = batch_id
        self.polls = 0
        self.last: Any = None
        self.progress = asyncio.Event()

    async def poll(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.last is None or self.last.status not in ("completed", "failed"):
            assert time.monotonic() < deadline, self.last
            try:
                self.last = await self._client.batches.retrieve(self._batch_id)
            except (openai.APIConnectionError, openai.InternalServerError):
                await asyncio.sleep(0.2)
                continue
            self.polls += 1
            if self.last.request_counts.completed >= LINES // 8:
                self.progress.set()
            await asyncio.sleep(0.02)


async def test_five_pollers_and_a_crash_are_one_charge_a_line(whole_stack: Stack) -> None:
    whole_stack.up()
    account = f"m15-{new_id('a')}"[:60]
    async with WholeWorld(whole_stack) as world:
        await world.publish_prices()
        await world.customers(account)
        ((_, bearer),) = world.bearer(account)
        async with openai.AsyncOpenAI(
            base_url=whole_stack.environment()["OPENAI_BASE_URL"],
            api_key=bearer.removeprefix("Bearer "),
            max_retries=0,
        ) as client:
            answers: list[Any] = []
            lost: list[str] = []
            # Where nobody looked in time a batch is over before the crash comes: then another one.
            while not lost:
                assert len(answers) < BATCHES_MOST * LINES, "no crash hit a line"
                answers += await over_a_crash(whole_stack, client)
                ids = [one["response"]["body"]["id"] for one in answers]
                assert len(set(ids)) == len(answers)
                # The lines that the crash took are those with a second run.
                lost = [one.removesuffix("/2") for one in ids if one.endswith("/2")]
        await world.check_residual()
        half = 0
        for answer in answers:
            told = answer["response"]["body"]["usage"]
            receipt = await receipt_of(world, account, answer["response"]["body"]["id"])
            assert {line.rule for line in receipt.lines} == {"line*batch"}
            counts = counts_of([line.leaf for line in receipt.lines])
            assert told["prompt_tokens"] == counts.plain + counts.cached
            assert told["completion_tokens"] == counts.output == TOKENS
            assert 2 * int(receipt.total.amount_pico) == counts.charge(receipt.outcome)
            half += int(receipt.total.amount_pico)
        # The first run of what was lost cost nothing.
        for request_id in lost:
            assert (await receipt_of(world, account, request_id)).total.amount_pico == "0"
        balance = (await world.balance(account)).balance
        assert (balance.charged.amount_pico, balance.held.amount_pico) == (str(half), "0")


async def over_a_crash(stack: Stack, client: openai.AsyncOpenAI) -> list[Any]:
    """The answers of a batch that all poll while the service is killed; one for each line."""
    file = await client.files.create(file=("in.jsonl", io.BytesIO(batch_file())), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    pollers = Pollers(client, batch.id)
    async with asyncio.TaskGroup() as group:
        for _ in range(POLLERS):
            group.create_task(pollers.poll())
        await asyncio.wait_for(pollers.progress.wait(), PATIENCE_S)
        await asyncio.to_thread(stack.kill, "inference")
    done = pollers.last
    assert done.status == "completed", done
    assert (done.request_counts.completed, done.request_counts.failed) == (LINES, 0)
    assert pollers.polls > POLLERS
    # When all was over before the kill, the service is only now on its way back.
    await asyncio.to_thread(stack.wait_ready, "inference", PATIENCE_S)
    text = (await client.files.content(done.output_file_id)).text
    answers = [json.loads(line) for line in text.splitlines()]
    assert sorted(one["custom_id"] for one in answers) == sorted(
        f"line {number}" for number in range(LINES)
    )
    return answers


async def receipt_of(world: WholeWorld, account: str, event_id: str) -> pricing_pb2.Receipt:
    """The receipt of a request, once it is charged."""
    await world.balance(account, event_id=event_id)
    request = pricing_pb2.GetReceiptRequest(account_id=account, event_id=event_id)
    try:
        answer = await world.pricing.GetReceipt(request, timeout=30)
    except grpc.aio.AioRpcError as error:
        raise AssertionError(f"no receipt of {event_id}: {error.details()}") from error
    receipt: pricing_pb2.Receipt = answer.receipt
    return receipt
