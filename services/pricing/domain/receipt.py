"""What a receipt comes to, read by whoever gives back a charge. Pure."""

from __future__ import annotations

from tollbook.pricing.v1 import money_pb2, pricing_pb2


def cost_since(receipt: pricing_pb2.Receipt) -> money_pb2.Amount:
    """What its event costs since the last re-rating, where there was one."""
    return receipt.corrections[-1].total if receipt.corrections else receipt.total
