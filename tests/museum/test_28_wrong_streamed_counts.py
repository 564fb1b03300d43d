"""Streamed counts that were not the tokens streamed: vllm#8625.

Here they are recounted: by the caller as they come, and in the log by the digest of the ids
themselves. A record that claims another count than its ids is refused by whoever reads it back.
"""

from __future__ import annotations

import hashlib
import struct

import pytest
from tests.integration.whole_world import WholeWorld, request

from inference.domain import records
from inference.domain.journal import Contradiction, Journal, Ref
from kernel.ids import new_id
from kernel.leaf import decode
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import pricing_pb2
from tollbook.stack import Stack
from tollbook.usage.v1 import usage_pb2

pytestmark = pytest.mark.museum


@pytest.mark.integration
@pytest.mark.engine
async def test_the_log_has_the_digest_of_what_was_streamed(whole_stack: Stack) -> None:
    whole_stack.up()
    account = f"m28-{new_id('a')}"[:60]
    async with WholeWorld(whole_stack) as world:
        await world.publish_prices()
        await world.customers(account)
        # The client holds every message's cumulative count to the ids that it has.
        asked = await world.ask(request(account, new_id("req"), 28, output=50))
        await world.check_everything([asked])
        receipt = (
            await world.pricing.GetReceipt(
                pricing_pb2.GetReceiptRequest(account_id=account, event_id=asked.request_id),
                timeout=20,
            )
        ).receipt
        entry = await world.ledger.GetEntry(
            ledger_pb2.GetEntryRequest(log=receipt.log, position=receipt.position), timeout=10
        )
        record = usage_pb2.UsageRecord.FromString(decode(entry.leaf).value)
        event = usage_pb2.UsageEvent.FromString(record.usage_event)
        assert len(asked.ids) == 50
        ids = struct.pack(f"<{len(asked.ids)}I", *asked.ids)
        assert event.output_digest == hashlib.sha256(ids).digest()


@pytest.mark.parametrize("claimed", [2, 4])
def test_a_record_that_claims_another_count_is_refused(claimed: int) -> None:
    journal = Journal()
    journal.apply(records.Started(0, "a", "r", b"", b"", b"", b"", 8, 1), Ref())
    with pytest.raises(Contradiction, match=f"3 tokens recorded, {claimed} claimed"):
        journal.apply(records.Progress(0, 0, claimed, 0, 0, 1, (5, 6, 7), "abc"), Ref())
