"""All balances of one instant, over as many pages as they take."""

from __future__ import annotations

from typing import Any

from tollbook.pricing.v1 import pricing_pb2


async def all_balances(
    pricing: Any, timeout_s: float, request: pricing_pb2.ListBalancesRequest | None = None
) -> pricing_pb2.ListBalancesResponse:
    """The first page's answer with the balances of all pages in it. `timeout_s` is for each page.

    Errors: those of the call.
    """
    asked = pricing_pb2.ListBalancesRequest()
    if request is not None:
        asked.CopyFrom(request)
    whole: pricing_pb2.ListBalancesResponse = await pricing.ListBalances(
        asked, timeout=timeout_s, wait_for_ready=True
    )
    while whole.next_page_token:
        asked.page_token = whole.next_page_token
        page = await pricing.ListBalances(asked, timeout=timeout_s)
        whole.balances.extend(page.balances)
        whole.next_page_token = page.next_page_token
    return whole
