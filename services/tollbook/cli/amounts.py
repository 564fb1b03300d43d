"""Amounts on the command line: exact decimals, in an account's own currency."""

from __future__ import annotations

from kernel.errors import InvalidArgument
from kernel.money import MoneyError, format_pico, parse_amount
from tollbook.cli.pricing_calls import ask
from tollbook.pricing.v1 import money_pb2, pricing_pb2


def pico_of(name: str, text: str) -> int:
    """Read an amount, in pico-units. Errors: InvalidArgument that names the argument."""
    try:
        return parse_amount(text)
    except MoneyError as error:
        raise InvalidArgument(f"{name}: {error}") from None


def currency_of(account: str) -> str:
    """The account's currency. Errors: TollbookError (no such account)."""
    whose = pricing_pb2.GetBalanceRequest(account_id=account)
    found = ask(lambda to, timeout_s: to.pricing.GetBalance(whose, timeout=timeout_s))
    return found.balance.available.currency


def amount_of(name: str, text: str, account: str, currency: str = "") -> money_pb2.Amount:
    """An amount in a currency, by default the account's. Errors: InvalidArgument, TollbookError."""
    pico = pico_of(name, text)
    return money_pb2.Amount(currency=currency or currency_of(account), amount_pico=str(pico))


def said(amount: money_pb2.Amount) -> str:
    """An amount for people: `5.25 USD`."""
    return f"{format_pico(int(amount.amount_pico or 0))} {amount.currency}"
