"""`tollbook usage | holds`: what an account used, by anything and any time, and what is held."""

from __future__ import annotations

from typing import Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

from kernel.clock import rfc3339, us_of
from kernel.money import format_pico
from tollbook.cli.amounts import said
from tollbook.cli.credit import WINDOWS
from tollbook.cli.instants import INSTANT
from tollbook.cli.pricing_calls import as_json, ask
from tollbook.cli.tables import table
from tollbook.pricing.v1 import accounts_pb2, holds_pb2, reports_pb2

_DIMENSIONS: Final = {
    name.removeprefix("USAGE_DIMENSION_").lower(): number
    for name, number in reports_pb2.UsageDimension.items()
    if number
}
_FIELDS: Final = {"project": "project_id", "key": "key_id"}
"""Of a row, where it is not the dimension's own name."""
_HOLDS: Final = 100
_FOR_PROGRAMS = click.option("--json", "for_programs", is_flag=True, help="For programs.")


@click.command()
@click.argument("account")
@click.option("--from", "from_time", type=INSTANT, required=True, help="First minute.")
@click.option("--to", "to_time", type=INSTANT, required=True, help="First minute after.")
@click.option("--by", "by", multiple=True, type=click.Choice(list(_DIMENSIONS)), help="Any of.")
@click.option("--every", type=click.Choice(list(WINDOWS)), help="A row for each; else one.")
@click.option("--time-zone", default="UTC", show_default=True, help="IANA name, for --every.")
@_FOR_PROGRAMS
def usage(
    account: str,
    from_time: Timestamp,
    to_time: Timestamp,
    by: tuple[str, ...],
    every: str | None,
    time_zone: str,
    for_programs: bool,
) -> None:
    """Show what ACCOUNT used and was charged for events of a time, by their own time."""
    request = reports_pb2.GetUsageRequest(
        account_id=account,
        from_time=from_time,
        to_time=to_time,
        group_by=[reports_pb2.UsageDimension.ValueType(_DIMENSIONS[name]) for name in by],
        time_zone=time_zone,
    )
    if every is not None:
        request.bucket = accounts_pb2.SpendWindow.ValueType(WINDOWS[every])
    answer = ask(lambda to, timeout_s: to.pricing.GetUsage(request, timeout=timeout_s))
    if for_programs:
        click.echo(as_json(answer))
        return
    head = (*(("FROM",) if every else ()), *(name.upper() for name in by))
    rows = [
        (
            *((rfc3339(us_of(row.bucket_time)),) if every else ()),
            *(str(getattr(row, _FIELDS.get(name, name))) or "-" for name in by),
            row.requests,
            row.amount,
            row.charged_amount,
            format_pico(int(row.charge.amount_pico or 0)),
        )
        for row in answer.rows
    ]
    click.echo(table((*head, "REQUESTS", "UNITS", "CHARGED", answer.currency), rows))


@click.command()
@click.argument("account")
@_FOR_PROGRAMS
def holds(account: str, for_programs: bool) -> None:
    """Show the open holds of ACCOUNT, the first to end first."""
    request = holds_pb2.ListHoldsRequest(account_id=account, page_size=_HOLDS)
    answer = ask(lambda to, timeout_s: to.pricing.ListHolds(request, timeout=timeout_s))
    if for_programs:
        click.echo(as_json(answer))
        return
    rows = [
        (
            hold.hold_id[:16],
            hold.project_id or "-",
            hold.key_id or "-",
            said(hold.amount),
            rfc3339(us_of(hold.expires_time)),
        )
        for hold in answer.holds
    ]
    click.echo(table(("HOLD", "PROJECT", "KEY", "AMOUNT", "ENDS BY ITSELF"), rows))
    click.echo(f"\n{answer.open_holds} open, {said(answer.held)} held")
