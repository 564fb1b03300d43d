"""What the demo sets up before the first request: prices, accounts, keys, credit."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import Any, Final, NamedTuple

from kernel import money
from tollbook.pricing.v1 import control_pb2, money_pb2, pricing_pb2

CARD_YAML: Final = """\
card: demo
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: tiny-input, match: {model: tiny, direction: in, cache_use: none}, per: 1_000_000, price: 0.15}
  - {id: tiny-cached, match: {model: tiny, direction: in, cache_use: read}, per: 1_000_000, price: 0.075}
  - {id: tiny-output, match: {model: tiny, direction: out}, per: 1_000_000, price: 0.60}
  - {id: support-output, match: {model: tiny-support, direction: out}, per: 1_000_000, price: 0.90}
"""  # noqa: E501 - a line of a card is a line
CREDITS: Final = {"acme": "5", "birch": "2.5", "cedar": "1", "dunes": "0.25"}


class Customer(NamedTuple):
    """An account and the secret of its key."""

    account_id: str
    secret: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Call metadata that says who asks."""
        return (("authorization", f"Bearer {self.secret}"),)


async def set_up(control: Any) -> list[Customer]:
    """Publish the card; create accounts, keys and credit. `control`: ControlService's stub."""
    published = control.PublishRateCard(
        pricing_pb2.PublishRateCardRequest(yaml=CARD_YAML, author="demo", approver="demo-second"),
        timeout=30,
        wait_for_ready=True,
    )
    customers = await asyncio.gather(
        *(_customer(control, account_id, credit) for account_id, credit in CREDITS.items())
    )
    await published
    return list(customers)


async def _customer(control: Any, account_id: str, credit: str) -> Customer:
    secret = secrets.token_urlsafe(24)
    await control.CreateAccount(
        pricing_pb2.CreateAccountRequest(
            account=control_pb2.AccountCreated(account_id=account_id, currency="USD")
        ),
        timeout=30,
        wait_for_ready=True,
    )
    await control.CreateKey(
        pricing_pb2.CreateKeyRequest(
            key=control_pb2.KeyCreated(
                key_id=f"{account_id}-key",
                account_id=account_id,
                secret_digest=hashlib.sha256(secret.encode()).digest(),
            )
        ),
        timeout=30,
    )
    await control.GrantCredit(
        pricing_pb2.GrantCreditRequest(
            grant=control_pb2.CreditGranted(
                grant_id=f"{account_id}-first",
                account_id=account_id,
                amount=money_pb2.Amount(
                    currency="USD", amount_pico=str(money.parse_amount(credit))
                ),
                reason="demo",
            )
        ),
        timeout=30,
    )
    return Customer(account_id, secret)
