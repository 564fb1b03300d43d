"""Cards and questions that the exhibits about prices share."""

from __future__ import annotations

from typing import Any

from tests.integration.pricing_world import TIMEOUT_S, World, again

from tollbook.pricing.v1 import cards_pb2, pricing_pb2


def card(name: str, model: str, price: str, start: str = "2026-01-01T00:00:00Z") -> str:
    """A card with one price, in dollars of a million tokens, for all tokens of a model."""
    return (
        f"card: {name}\ncurrency: USD\neffective_from: {start}\nlines:\n"
        f"  - {{id: all, match: {{model: {model}}}, per: 1_000_000, price: {price}}}\n"
    )


async def receipt(world: World, account_id: str, event_id: str) -> pricing_pb2.Receipt:
    """The receipt of an event, once it is applied."""
    await world.balance(account_id, event_id=event_id)
    answer = await world.pricing.GetReceipt(
        pricing_pb2.GetReceiptRequest(account_id=account_id, event_id=event_id), timeout=TIMEOUT_S
    )
    found: pricing_pb2.Receipt = answer.receipt
    return found


async def charged_pico(world: World, account_id: str) -> int:
    """What an account was charged so far."""
    return int((await world.balance(account_id)).balance.charged.amount_pico)


async def postings(world: World, account_id: str) -> list[pricing_pb2.Posting]:
    """An account's postings, newest first."""
    answer = await world.pricing.ListPostings(
        pricing_pb2.ListPostingsRequest(account_id=account_id, page_size=1000), timeout=TIMEOUT_S
    )
    return list(answer.postings)


async def prices(world: World, model: str, **times: Any) -> set[tuple[int, int]]:
    """(version, price of one token in pico-dollars) that a model's leaves have."""
    answer = await world.cards.ListPrices(
        cards_pb2.ListPricesRequest(model=model, **times), timeout=TIMEOUT_S
    )
    return {(one.card.version, int(one.unit_price.amount_pico)) for one in answer.prices}


async def digest(world: World) -> tuple[bytes, bytes]:
    """(digest that is served, digest by a replay of the logs alone), at the same positions."""
    wait_for = await world.recorded()
    listed = await again(
        lambda: world.pricing.ListBalances(
            pricing_pb2.ListBalancesRequest(wait_for=wait_for), timeout=30
        )
    )
    replay = await world.replay({item.log: item.size for item in listed.positions})
    assert sum(replay.balances.values()) == 0
    return listed.balances_digest, replay.digest()
