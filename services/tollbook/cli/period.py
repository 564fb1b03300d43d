"""`tollbook period | statements`: months closed, and what accounts are billed for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from kernel.errors import InvalidArgument
from kernel.money import format_pico
from tollbook.cli.pricing_calls import as_json, ask
from tollbook.cli.tables import table
from tollbook.pricing.v1 import money_pb2, statements_pb2

_CLOSE_S = 60.0
_PAGE = 1_000
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
def write(account: str, month: str, folder: Path) -> None:
    """Write ACCOUNT's statement of MONTH into FOLDER: as canonical JSON, as HTML and as PDF."""
    from tollbook.statements import page, paper
    from tollbook.statements.reading import read

    request = statements_pb2.GetStatementRequest(account_id=account, period=month)
    answer = ask(lambda to, timeout_s: to.pricing.GetStatement(request, timeout=timeout_s))
    if hashlib.sha256(answer.document).digest() != answer.summary.statement_hash:
        raise InvalidArgument("the statement is not the one that its period was closed with")
    statement = read(answer.document, answer.summary.position)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, data in (
        ("json", answer.document),
        ("html", page.html(statement).encode()),
        ("pdf", paper.pdf(statement)),
    ):
        path = folder / f"{account}-{month}.{suffix}"
        path.write_bytes(data)
        click.echo(str(path))


def _listed(
    request: statements_pb2.ListStatementsRequest,
) -> statements_pb2.ListStatementsResponse:
    return ask(lambda to, timeout_s: to.pricing.ListStatements(request, timeout=timeout_s))


def _money(amount: money_pb2.Amount) -> str:
    return f"{format_pico(int(amount.amount_pico))} {amount.currency}"
