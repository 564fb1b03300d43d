"""`tollbook period | statements`: months closed, and what accounts are billed for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from kernel.clock import timestamp_of
from kernel.errors import InvalidArgument
from kernel.money import format_pico
from pricing.domain.windows import month_bounds_us
from tollbook.cli.pricing_calls import as_json, ask
from tollbook.cli.tables import table
from tollbook.pricing.v1 import money_pb2, reports_pb2, statements_pb2

_CLOSE_S = 60.0
_PAGE = 1_000
_DAY_US: Final = 86_400_000_000
_FOR_PROGRAMS = click.option("--json", "for_programs", is_flag=True, help="For programs.")


@click.group()
def period() -> None:
    """Close months."""


@period.command("close")
@click.argument("month")
@_FOR_PROGRAMS
def close(month: str, for_programs: bool) -> None:
    """Close MONTH, such as 2026-01, for every account; the same again goes on where it ended.

    Leaves with status 1 while some account's month is open.
    """
    request = statements_pb2.ClosePeriodRequest(period=month)
    answer = ask(lambda to, timeout_s: to.control.ClosePeriod(request, timeout=timeout_s), _CLOSE_S)
    if for_programs:
        click.echo(as_json(answer))
    else:
        click.echo(
            f"{month} ended at control position {answer.end_position}; closed for"
            f" {answer.closed} accounts, open for {answer.open_accounts}"
        )
        for account in answer.open:
            click.echo(f"  {account.account_id}: {account.why}")
    if answer.open_accounts:
        raise SystemExit(1)


@click.group()
def statements() -> None:
    """List and write statements of closed months."""


@statements.command("list")
@click.argument("account")
@_FOR_PROGRAMS
def list_statements(account: str, for_programs: bool) -> None:
    """List what ACCOUNT's closed months came to, newest first."""
    found = statements_pb2.ListStatementsResponse()
    token = ""
    while True:
        request = statements_pb2.ListStatementsRequest(
            account_id=account, page_size=_PAGE, page_token=token
        )
        answer = _listed(request)
        found.statements.extend(answer.statements)
        token = answer.next_page_token
        if not token:
            break
    if for_programs:
        click.echo(as_json(found))
        return
    head = ("PERIOD", "CHARGED", "CORRECTED", "INVOICED", "CONTROL", "STATEMENT")
    rows = [
        (
            one.period,
            _money(one.charged),
            _money(one.corrected),
            _money(one.invoiced),
            one.position,
            one.statement_hash.hex()[:16],
        )
        for one in found.statements
    ]
    click.echo(table(head, rows))


@statements.command("write")
@click.argument("account")
@click.argument("month")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--issuer", default="Tollbook", show_default=True, help="Who sells, in FOCUS rows.")
def write(account: str, month: str, folder: Path, issuer: str) -> None:
    """Write ACCOUNT's statement of MONTH into FOLDER.

    As canonical JSON, as HTML, as PDF, and as rows of FOCUS 1.2 in CSV and Parquet.
    """
    from tollbook.statements import focus, page, paper
    from tollbook.statements.reading import read

    request = statements_pb2.GetStatementRequest(account_id=account, period=month)
    answer = ask(lambda to, timeout_s: to.pricing.GetStatement(request, timeout=timeout_s))
    if hashlib.sha256(answer.document).digest() != answer.summary.statement_hash:
        raise InvalidArgument("the statement is not the one that its period was closed with")
    statement = read(answer.document, answer.summary.position)
    rows = focus.rows(
        answer.document,
        answer.summary.position,
        _units(account, focus.months(answer.document)),
        issuer,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, data in (
        ("json", answer.document),
        ("html", page.html(statement).encode()),
        ("pdf", paper.pdf(statement)),
        ("focus.csv", focus.to_csv(rows)),
        ("focus.parquet", focus.to_parquet(rows)),
    ):
        path = folder / f"{account}-{month}.{suffix}"
        path.write_bytes(data)
        click.echo(str(path))


def _units(account: str, months: Sequence[str]) -> dict[str, str]:
    """The unit of each line that priced usage of these months, by `CARD/VERSION/LINE`."""
    if not months:
        return {}
    # A card's months may be of its own time zone: a day more on each side holds them all.
    request = reports_pb2.GetUsageRequest(
        account_id=account,
        from_time=timestamp_of(max(0, month_bounds_us(min(months), "UTC")[0] - _DAY_US)),
        to_time=timestamp_of(month_bounds_us(max(months), "UTC")[1] + _DAY_US),
        group_by=[reports_pb2.USAGE_DIMENSION_LEAF, reports_pb2.USAGE_DIMENSION_LINE],
    )
    answer = ask(lambda to, timeout_s: to.pricing.GetUsage(request, timeout=timeout_s))
    # A leaf's text begins with its unit.
    return {row.line: row.leaf.partition("/")[0] for row in answer.rows if row.line}


def _listed(
    request: statements_pb2.ListStatementsRequest,
) -> statements_pb2.ListStatementsResponse:
    return ask(lambda to, timeout_s: to.pricing.ListStatements(request, timeout=timeout_s))


def _money(amount: money_pb2.Amount) -> str:
    return f"{format_pico(int(amount.amount_pico))} {amount.currency}"
