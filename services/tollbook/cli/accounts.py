"""`tollbook accounts | keys | grant`: who pays, what they pay with, and on whose word."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

from kernel import ids
from kernel.money import format_pico
from tollbook.cli.amounts import amount_of, said
from tollbook.cli.instants import INSTANT
from tollbook.cli.pricing_calls import as_json, ask
from tollbook.cli.tables import table
from tollbook.listing import all_balances
from tollbook.pricing.v1 import control_pb2, pricing_pb2

_SECRET_BYTES: Final = 32


@click.group()
def accounts() -> None:
    """Make and list accounts."""


@accounts.command()
@click.argument("account")
@click.option("--currency", default="USD", show_default=True, help="All its money is in it.")
@click.option("--name", default="", help="For people.")
def create(account: str, currency: str, name: str) -> None:
    """Make ACCOUNT; the same again changes nothing."""
    made = control_pb2.AccountCreated(account_id=account, currency=currency, display_name=name)
    request = pricing_pb2.CreateAccountRequest(account=made)
    answer = ask(lambda to, timeout_s: to.control.CreateAccount(request, timeout=timeout_s))
    click.echo(f"account {account} in {currency}, control position {answer.position}")


@accounts.command("list")
@click.option("--json", "for_programs", is_flag=True, help="For programs.")
def list_accounts(for_programs: bool) -> None:
    """List all accounts with their balances."""
    answer = ask(lambda to, timeout_s: all_balances(to.pricing, timeout_s))
    if for_programs:
        click.echo(as_json(answer))
        return
    rows = [
        (
            balance.account_id,
            balance.available.currency,
            format_pico(int(balance.available.amount_pico)),
            format_pico(int(balance.granted.amount_pico)),
            format_pico(int(balance.charged.amount_pico)),
            balance.usage.requests,
            balance.suspense_entries,
        )
        for balance in answer.balances
    ]
    head = ("ACCOUNT", "CURRENCY", "AVAILABLE", "GRANTED", "CHARGED", "REQUESTS", "SUSPENSE")
    click.echo(table(head, rows))


@click.group()
def keys() -> None:
    """Make and revoke the keys that callers show."""


@keys.command("create")
@click.argument("account")
@click.option("--id", "key_id", default="", help="The key's id; by default a new one.")
@click.option("--project", default="", help="The account's project that uses it.")
@click.option("--json", "for_programs", is_flag=True, help="For programs.")
def create_key(account: str, key_id: str, project: str, for_programs: bool) -> None:
    """Make a key for ACCOUNT and print its secret, this once.

    The secret is made here, and only its SHA-256 leaves this machine.
    """
    secret = f"tb-{secrets.token_urlsafe(_SECRET_BYTES)}"
    made = control_pb2.KeyCreated(
        key_id=key_id or ids.new_id("key"),
        account_id=account,
        project_id=project,
        secret_digest=hashlib.sha256(secret.encode()).digest(),
    )
    request = pricing_pb2.CreateKeyRequest(key=made)
    answer = ask(lambda to, timeout_s: to.control.CreateKey(request, timeout=timeout_s))
    if for_programs:
        shown = {"key_id": made.key_id, "secret": secret, "position": answer.position}
        click.echo(json.dumps(shown))
        return
    click.echo(f"key {made.key_id} of account {account}, control position {answer.position}")
    click.echo(f"secret {secret}")
    click.echo("Keep the secret now: it is stored nowhere and never shown again.", err=True)


@keys.command("revoke")
@click.argument("key")
def revoke_key(key: str) -> None:
    """Make KEY void; the same again changes nothing."""
    request = pricing_pb2.RevokeKeyRequest(key_id=key)
    answer = ask(lambda to, timeout_s: to.control.RevokeKey(request, timeout=timeout_s))
    click.echo(f"key {key} is void, control position {answer.position}")


# So that -5 is told that it is no amount, and not that there is no such option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("account")
@click.argument("amount")
@click.option("--id", "grant_id", default="", help="Grants once, however often it is called.")
@click.option("--currency", default="", help="By default the account's.")
@click.option("--reason", default="", help="Why.")
@click.option("--priority", default=0, show_default=True, help="Lower numbers pay first.")
@click.option("--expires", type=INSTANT, help="What is left of it then is void.")
@click.option("--project", default="", help="For this project alone.")
def grant(
    account: str,
    amount: str,
    grant_id: str,
    currency: str,
    reason: str,
    priority: int,
    expires: Timestamp | None,
    project: str,
) -> None:
    """Give ACCOUNT credit of AMOUNT, such as 25.00."""
    made = control_pb2.CreditGranted(
        grant_id=grant_id or ids.new_id("grant"),
        account_id=account,
        amount=amount_of("AMOUNT", amount, account, currency),
        reason=reason,
        priority=priority,
        expires_time=expires,
        project_id=project,
    )
    request = pricing_pb2.GrantCreditRequest(grant=made)
    answer = ask(lambda to, timeout_s: to.control.GrantCredit(request, timeout=timeout_s))
    click.echo(
        f"granted {said(made.amount)} to {account}"
        f" ({made.grant_id}, control position {answer.position})"
    )
