"""What the demo sets up before the first request: accounts, keys, credit, prices."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
from collections.abc import Container, Mapping
from typing import Any, Final, NamedTuple

from kernel import money
from kernel.ids import new_id
from tollbook.pricing.v1 import control_pb2, money_pb2, pricing_pb2

_HEAD: Final = """\
card: demo
currency: USD
effective_from: 2026-01-01T00:00:00Z
multipliers:
  - {id: batch, match: {service_tier: batch}, factor: 0.5}
lines:
"""
# An adapter pays its base model's prices, but for its output.
_BASE: Final = """\
  - {{id: {name}-input, match: {{model: {name}, direction: in, cache_use: none}}, per: 1_000_000, price: 0.15}}
  - {{id: {name}-cached, match: {{model: {name}, direction: in, cache_use: read}}, per: 1_000_000, price: 0.075}}
  - {{id: {name}-output, match: {{model: {name}, direction: out}}, per: 1_000_000, price: 0.60}}
"""  # noqa: E501 - a line of a card is a line
_ADAPTER: Final = """\
  - {{id: {name}-output, match: {{model: {name}, direction: out}}, per: 1_000_000, price: 0.90}}
"""
CREDITS: Final = {"acme": "5", "birch": "2.5", "cedar": "1", "dunes": "0.25"}


class Customer(NamedTuple):
    """An account and the secret of its key."""

    account_id: str
    secret: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Call metadata that says who asks."""
        return (("authorization", f"Bearer {self.secret}"),)


def names(taken: Container[str]) -> dict[str, str]:
    """Credit by account id, ids that a ledger in use does not have yet: acme, then acme-2, ..."""
    suffixes = itertools.chain([""], (f"-{run}" for run in itertools.count(2)))
    for suffix in suffixes:
        free = {f"{account_id}{suffix}": credit for account_id, credit in CREDITS.items()}
        if not any(account_id in taken for account_id in free):
            return free
    raise AssertionError("count() ends never")


def card_yaml(models: Mapping[str, bool]) -> str:
    """The demo's rate card. `models`: the served models by name, and which is an adapter."""
    lines = ((_ADAPTER if adapter else _BASE).format(name=name) for name, adapter in models.items())
    return _HEAD + "".join(lines)


async def publish(control: Any, models: Mapping[str, bool]) -> None:
    """Put the card in force. `control`: ControlService's stub; `models` as in card_yaml."""
    await control.PublishRateCard(
        pricing_pb2.PublishRateCardRequest(
            yaml=card_yaml(models), author="demo", approver="demo-second"
        ),
        timeout=30,
    )


async def set_up(control: Any, taken: Container[str]) -> list[Customer]:
    """Create accounts, keys and credit.

    `control`: ControlService's stub. `taken`: the accounts that are there already.
    """
    return await asyncio.gather(
        *(_customer(control, account_id, credit) for account_id, credit in names(taken).items())
    )


async def house(control: Any, account_id: str) -> Customer:
    """A new key of the house's account, which has no credit: who may ask what engines counted."""
    return await _with_key(control, account_id, new_id("key"))


async def _with_key(control: Any, account_id: str, key_id: str) -> Customer:
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
                key_id=key_id,
                account_id=account_id,
                secret_digest=hashlib.sha256(secret.encode()).digest(),
            )
        ),
        timeout=30,
    )
    return Customer(account_id, secret)


async def _customer(control: Any, account_id: str, credit: str) -> Customer:
    customer = await _with_key(control, account_id, f"{account_id}-key")
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
    return customer
