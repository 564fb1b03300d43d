"""`tollbook operators`: who may change prices."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

import click

from tollbook.cli.pricing_calls import as_json, ask, operator_key
from tollbook.cli.tables import table
from tollbook.pricing.v1 import card_records_pb2, cards_pb2

_SECRET_BYTES: Final = 32
_ROLES: Final = {
    "admin": card_records_pb2.ROLE_ADMIN,
    "author": card_records_pb2.ROLE_AUTHOR,
    "approver": card_records_pb2.ROLE_APPROVER,
}
_WORDS: Final = {number: word for word, number in _ROLES.items()}


@click.group()
def operators() -> None:
    """Make and revoke the operators who change prices.

    The secret of the one who calls is taken from $TOLLBOOK_OPERATOR_KEY.
    """


@operators.command()
@click.argument("operator")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice(tuple(_ROLES)),
    help="What they may do; more than one may be given.",
)
def create(operator: str, roles: tuple[str, ...]) -> None:
    """Make OPERATOR and print the secret, this once. The first one must be an admin.

    The secret is made here, and only its SHA-256 leaves this machine.
    """
    secret = f"op-{secrets.token_urlsafe(_SECRET_BYTES)}"
    made = card_records_pb2.OperatorCreated(
        operator_id=operator,
        roles=[_ROLES[role] for role in dict.fromkeys(roles)],
        secret_digest=hashlib.sha256(secret.encode()).digest(),
    )
    request = cards_pb2.CreateOperatorRequest(operator=made)
    answer = ask(
        lambda to, timeout_s: to.operators.CreateOperator(
            request, timeout=timeout_s, metadata=operator_key()
        )
    )
    click.echo(f"operator {operator}, control position {answer.position}", err=True)
    click.echo("Keep the secret now: it is stored nowhere and never shown again.", err=True)
    click.echo(secret)


@operators.command()
@click.argument("operator")
def revoke(operator: str) -> None:
    """Let OPERATOR change nothing any more."""
    request = cards_pb2.RevokeOperatorRequest(operator_id=operator)
    answer = ask(
        lambda to, timeout_s: to.operators.RevokeOperator(
            request, timeout=timeout_s, metadata=operator_key()
        )
    )
    click.echo(f"operator {operator} may do nothing, control position {answer.position}")


@operators.command("list")
@click.option("--json", "for_programs", is_flag=True, help="For programs.")
def list_operators(for_programs: bool) -> None:
    """Show all operators and what they may do."""
    request = cards_pb2.ListOperatorsRequest()
    answer = ask(lambda to, timeout_s: to.operators.ListOperators(request, timeout=timeout_s))
    if for_programs:
        click.echo(as_json(answer))
        return
    rows = [
        (
            one.operator_id,
            "nothing (revoked)" if one.revoked else ", ".join(_WORDS[role] for role in one.roles),
        )
        for one in answer.operators
    ]
    click.echo(table(("OPERATOR", "MAY"), rows))
