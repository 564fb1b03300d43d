"""`tollbook top-up | top-up-rule | refund | transfer | terms | projects | limits`: credit moves.

Every change is a record of the control log and stands under an id: the same
command with the same `--id` changes nothing more.
"""

from __future__ import annotations

from typing import Final

import click

from kernel import ids
from kernel.errors import InvalidArgument
from pricing.domain.receipt import cost_since
from tollbook.cli.amounts import amount_of, said
from tollbook.cli.pricing_calls import ask
from tollbook.pricing.v1 import accounts_pb2, pricing_pb2

WINDOWS: Final = {
    name.removeprefix("SPEND_WINDOW_").lower(): number
    for name, number in accounts_pb2.SpendWindow.items()
    if number
}
# So that -5 is told that it is no amount, and not that there is no such option.
_AMOUNTS: Final = {"ignore_unknown_options": True}
_ID = click.option("--id", "given_id", default="", help="Once, however often it is called.")


@click.group()
def projects() -> None:
    """Make the projects of an account."""


@projects.command("create")
@click.argument("account")
@click.argument("project")
@click.option("--name", default="", help="For people.")
def create_project(account: str, project: str, name: str) -> None:
    """Make PROJECT of ACCOUNT; the same again changes nothing."""
    made = accounts_pb2.ProjectCreated(account_id=account, project_id=project, display_name=name)
    request = pricing_pb2.CreateProjectRequest(project=made)
    answer = ask(lambda to, timeout_s: to.control.CreateProject(request, timeout=timeout_s))
    click.echo(f"project {project} of {account}, control position {answer.position}")


@click.command(context_settings=_AMOUNTS)
@click.argument("account")
@click.argument("credit_limit")
@_ID
def terms(account: str, credit_limit: str, given_id: str) -> None:
    """Let ACCOUNT go as far below 0 as CREDIT_LIMIT; 0 is prepaid."""
    made = accounts_pb2.TermsSet(
        terms_id=given_id or ids.new_id("terms"),
        account_id=account,
        credit_limit=amount_of("CREDIT_LIMIT", credit_limit, account),
    )
    request = pricing_pb2.SetTermsRequest(terms=made)
    answer = ask(lambda to, timeout_s: to.control.SetTerms(request, timeout=timeout_s))
    click.echo(
        f"{account} may go {said(made.credit_limit)} below 0"
        f" ({made.terms_id}, control position {answer.position})"
    )


@click.group()
def limits() -> None:
    """Limit what is spent in each window of time."""


@limits.command("set", context_settings=_AMOUNTS)
@click.argument("account")
@click.argument("limit")
@click.argument("amount")
@click.option("--window", type=click.Choice(list(WINDOWS)), required=True, help="Of what time.")
@click.option("--time-zone", default="UTC", show_default=True, help="IANA name of its clock.")
@click.option("--project", default="", help="Of this project alone.")
@click.option("--key", default="", help="Of this key alone.")
@_ID
def set_limit(
    account: str,
    limit: str,
    amount: str,
    window: str,
    time_zone: str,
    project: str,
    key: str,
    given_id: str,
) -> None:
    """Set LIMIT of ACCOUNT, or change it: at most AMOUNT in each window."""
    made = accounts_pb2.LimitSet(
        change_id=given_id or ids.new_id("limit"),
        limit_id=limit,
        account_id=account,
        project_id=project,
        key_id=key,
        window=accounts_pb2.SpendWindow.ValueType(WINDOWS[window]),
        time_zone=time_zone,
        amount=amount_of("AMOUNT", amount, account),
    )
    position = _set_limit(made)
    each = "ever" if window == "ever" else f"each {window} of {time_zone}"
    click.echo(
        f"limit {limit} of {account}: {said(made.amount)}, {each}"
        f" ({made.change_id}, control position {position})"
    )


@limits.command("lift")
@click.argument("account")
@click.argument("limit")
@_ID
def lift_limit(account: str, limit: str, given_id: str) -> None:
    """Lift LIMIT of ACCOUNT."""
    made = accounts_pb2.LimitSet(
        change_id=given_id or ids.new_id("limit"),
        limit_id=limit,
        account_id=account,
        window=accounts_pb2.SPEND_WINDOW_EVER,
    )
    click.echo(f"limit {limit} of {account} is lifted, control position {_set_limit(made)}")


def _set_limit(made: accounts_pb2.LimitSet) -> int:
    request = pricing_pb2.SetLimitRequest(limit=made)
    answer = ask(lambda to, timeout_s: to.control.SetLimit(request, timeout=timeout_s))
    return answer.position


@click.command("top-up", context_settings=_AMOUNTS)
@click.argument("account")
@click.argument("amount")
@_ID
def top_up(account: str, amount: str, given_id: str) -> None:
    """Enter AMOUNT that was paid for ACCOUNT."""
    made = accounts_pb2.CreditToppedUp(
        top_up_id=given_id or ids.new_id("topup"),
        account_id=account,
        amount=amount_of("AMOUNT", amount, account),
    )
    request = pricing_pb2.TopUpRequest(top_up=made)
    answer = ask(lambda to, timeout_s: to.control.TopUp(request, timeout=timeout_s))
    click.echo(
        f"{account} is topped up with {said(made.amount)}"
        f" ({made.top_up_id}, control position {answer.position})"
    )


@click.command("top-up-rule")
@click.argument("account")
@click.option("--below", default="", help="When the balance falls below this.")
@click.option("--amount", default="", help="What is paid then.")
@click.option("--off", is_flag=True, help="No more.")
@_ID
def top_up_rule(account: str, below: str, amount: str, off: bool, given_id: str) -> None:
    """Top ACCOUNT up by itself: once for each time that its balance falls below a threshold."""
    if off == bool(below or amount) or bool(below) != bool(amount):
        raise click.UsageError("a rule needs --below and --amount; --off ends it")
    made = accounts_pb2.TopUpRuleSet(
        rule_id=given_id or ids.new_id("rule"),
        account_id=account,
        threshold=amount_of("--below", below or "0", account),
    )
    if amount:
        made.amount.CopyFrom(amount_of("--amount", amount, account, made.threshold.currency))
    request = pricing_pb2.SetTopUpRuleRequest(rule=made)
    answer = ask(lambda to, timeout_s: to.control.SetTopUpRule(request, timeout=timeout_s))
    what = (
        "is not topped up by itself"
        if off
        else f"gets {said(made.amount)} when it falls below {said(made.threshold)}"
    )
    click.echo(f"{account} {what} ({made.rule_id}, control position {answer.position})")


@click.command(context_settings=_AMOUNTS)
@click.argument("account")
@click.argument("event")
@click.argument("amount", required=False)
@click.option("--reason", default="", help="Why.")
def refund(account: str, event: str, amount: str | None, reason: str) -> None:
    """Give back what EVENT cost ACCOUNT, or AMOUNT of it: once for an event."""
    if amount is None:
        asked = pricing_pb2.GetReceiptRequest(account_id=account, event_id=event)
        found = ask(lambda to, timeout_s: to.pricing.GetReceipt(asked, timeout=timeout_s)).receipt
        back = cost_since(found)
        if not int(back.amount_pico or 0):
            raise InvalidArgument(
                f"event {event!r} cost nothing so far: there is nothing to refund"
            )
    else:
        back = amount_of("AMOUNT", amount, account)
    made = accounts_pb2.ChargeRefunded(
        account_id=account, event_id=event, amount=back, reason=reason
    )
    request = pricing_pb2.RefundChargeRequest(refund=made)
    answer = ask(lambda to, timeout_s: to.control.RefundCharge(request, timeout=timeout_s))
    click.echo(f"refunded {said(back)} of {event} to {account}, control position {answer.position}")


@click.command(context_settings=_AMOUNTS)
@click.argument("from_account")
@click.argument("to_account")
@click.argument("amount")
@_ID
def transfer(from_account: str, to_account: str, amount: str, given_id: str) -> None:
    """Move AMOUNT of FROM_ACCOUNT's credit to TO_ACCOUNT, of the same currency."""
    made = accounts_pb2.CreditTransferred(
        transfer_id=given_id or ids.new_id("transfer"),
        from_account_id=from_account,
        to_account_id=to_account,
        amount=amount_of("AMOUNT", amount, from_account),
    )
    request = pricing_pb2.TransferCreditRequest(transfer=made)
    answer = ask(lambda to, timeout_s: to.control.TransferCredit(request, timeout=timeout_s))
    click.echo(
        f"transferred {said(made.amount)} from {from_account} to {to_account}"
        f" ({made.transfer_id}, control position {answer.position})"
    )
