"""What the running ledger and pricing make of a conservation run's events.

Charges are asked of the services: receipts one by one, what the projector posted in sums, balances.
Each is held to the others, and money to plain fractions that share no code with pricing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from tests.integration.inference_service import ACCOUNTS, secret_of
from tests.integration.pricing_world import T0_US, again
from tests.integration.whole_world import PATIENCE_S, Identity, WholeWorld, counts_of

from kernel.clock import timestamp_of
from tollbook.demo import settle
from tollbook.pricing.v1 import pricing_pb2, reports_pb2
from tollbook.stack import HOUSE_ACCOUNT
from tollbook.usage.v1 import usage_pb2 as usage

_CENTURY_US: Final = 100 * 365 * 86_400 * 10**6


class Books(WholeWorld):
    """The stack's ledger and pricing, and the accounts of whoever calls the service beside it."""

    async def open_accounts(self) -> None:
        """All accounts of the run, each with credit and a key, and the house's."""
        await self.publish_prices()

        async def one(account: str) -> None:
            if account == HOUSE_ACCOUNT:
                await self.create(account)
            else:
                await self.open(account)
            await self.key(f"key-{account}", account, secret_of(account))

        await asyncio.gather(*(one(account) for account in (*ACCOUNTS, HOUSE_ACCOUNT)))

    async def recorded(self) -> list[pricing_pb2.LogPosition]:
        """Wait until the topic is in the logs: the service is gone, it has sent all it had."""
        return await self.logged()

    async def charged(
        self, events: Mapping[Identity, usage.UsageEvent]
    ) -> dict[Identity, pricing_pb2.Receipt]:
        """Wait until the events are charged; gives each one's receipt, found to be right.

        Every account's balance is what its events cost, and what the projector posted is the sum
        of the receipts, by account and outcome.
        """
        for (account_id, event_id), event in events.items():
            self._enter_event(account_id, event_id, event)
        await self.check()
        receipts = await self.receipts(events)
        for identity, receipt in receipts.items():
            _check_receipt(receipt, events[identity])
        await asyncio.gather(
            *(self._check_posted(account_id, receipts) for account_id in self.accounts)
        )
        return receipts

    async def sums(self) -> tuple[int, int, int]:
        """Tokens by the cut's own account, once the engines' last readings are in it: of events,
        of the engines' counters, of waste.
        """
        await again(lambda: settle.counted(self.control, PATIENCE_S))
        answer = await again(lambda: self.control.CreateCut(pricing_pb2.CreateCutRequest()))
        found = answer.cut.conservation
        return found.event_tokens, found.engine_tokens, found.waste_tokens

    def _enter_event(self, account_id: str, event_id: str, event: usage.UsageEvent) -> None:
        counts = counts_of(event.quantities)
        account = self.accounts[account_id]
        account.events.append(event_id)
        account.requests += 1
        account.input_tokens += counts.plain
        account.cached_tokens += counts.cached
        account.output_tokens += counts.output
        account.charged += counts.charge(event.outcome)

    async def _check_posted(
        self, account_id: str, receipts: Mapping[Identity, pricing_pb2.Receipt]
    ) -> None:
        """Units charged and money, by outcome and direction: the projector's rows are these
        receipts, and their sum is the balance.
        """
        units, pico = Counter[tuple[str, str]](), Counter[str]()
        for (owner, _), receipt in receipts.items():
            if owner == account_id:
                outcome = word_of(receipt.outcome)
                pico[outcome] += int(receipt.total.amount_pico)
                for line in receipt.lines:
                    units[outcome, direction_of(line.leaf)] += line.charged_quantity
        answer = await again(
            lambda: self.pricing.GetUsage(
                reports_pb2.GetUsageRequest(
                    account_id=account_id,
                    from_time=timestamp_of(T0_US),
                    to_time=timestamp_of(T0_US + _CENTURY_US),
                    group_by=[
                        reports_pb2.USAGE_DIMENSION_OUTCOME,
                        reports_pb2.USAGE_DIMENSION_LEAF,
                    ],
                ),
                timeout=30,
            )
        )
        posted_units, posted_pico = Counter[tuple[str, str]](), Counter[str]()
        for row in answer.rows:
            posted_pico[row.outcome] += int(row.charge.amount_pico)
            if not row.requests:
                posted_units[row.outcome, row.leaf.split("/")[1]] += row.charged_amount
        # A counter compares what it lacks as 0.
        assert posted_units == units
        assert posted_pico == pico
        assert Fraction(posted_pico.total()) == self.accounts[account_id].charged


def _check_receipt(receipt: pricing_pb2.Receipt, event: usage.UsageEvent) -> None:
    assert [line.leaf for line in receipt.lines] == list(event.quantities), (receipt, event)
    assert receipt.outcome == event.outcome
    assert not receipt.suspense
    cost = counts_of(event.quantities).charge(event.outcome)
    assert Fraction(receipt.total.amount_pico) == cost, (receipt, event)


def billed_of(receipt: pricing_pb2.Receipt) -> int:
    """Output tokens that a receipt charges."""
    return sum(
        line.charged_quantity
        for line in receipt.lines
        if line.leaf.direction == usage.DIRECTION_OUT
    )


def word_of(outcome: int) -> str:
    """An outcome's word."""
    return usage.Outcome.Name(usage.Outcome.ValueType(outcome)).removeprefix("OUTCOME_").lower()


def direction_of(leaf: usage.Quantity) -> str:
    """A leaf's direction in a word."""
    return usage.Direction.Name(leaf.direction).removeprefix("DIRECTION_").lower()
