"""`tollbook cards propose | approve | schedule | retire | history | prices | diff`: their life."""

from __future__ import annotations

from pathlib import Path

import click
from google.protobuf.timestamp_pb2 import Timestamp

from kernel.clock import rfc3339, us_of
from kernel.money import format_pico
from tollbook.cli.card_files import FILE, read_card, refusing
from tollbook.cli.instants import INSTANT
from tollbook.cli.pricing_calls import as_json, ask, operator_key
from tollbook.cli.tables import table
from tollbook.pricing.v1 import cards_pb2, pricing_pb2

_REASON = click.option("--reason", default="", help="Why.")
_FOR_PROGRAMS = click.option("--json", "for_programs", is_flag=True, help="For programs.")
_AT = click.option("--at", type=INSTANT, help="Valid time: of events of this instant; now.")
_KNOWN_AT = click.option(
    "--known-at", type=INSTANT, help="Known time: as the log had it at this instant; now."
)


@click.command()
@FILE
@_REASON
def propose(file: Path, reason: str) -> None:
    """Record the card in FILE as its next version. It prices nothing before it is approved.

    Needs the role author; the secret is taken from $TOLLBOOK_OPERATOR_KEY.
    """
    request = cards_pb2.ProposeRateCardRequest(yaml=read_card(file), reason=reason)
    with refusing(file):
        answer = ask(
            lambda to, timeout_s: to.cards.ProposeRateCard(
                request, timeout=timeout_s, metadata=operator_key()
            )
        )
    click.echo(
        f"card {_card(answer.card)} is proposed, control position {answer.position},"
        f" sha256 {answer.card.content_hash.hex()}"
    )


@click.command()
@click.argument("card")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--sha256", "content_hash", default="", help="Approve this content and no other.")
@_REASON
def approve(card: str, version: int, content_hash: str, reason: str) -> None:
    """Put VERSION of CARD in force, from the instant that stands in it.

    Needs the role approver, of another than its author.
    """
    _approve(card, version, content_hash, reason, None)


@click.command()
@click.argument("card")
@click.argument("version", type=click.IntRange(min=1))
@click.option(
    "--from", "starts", type=INSTANT, required=True, help="First instant of events it prices."
)
@click.option("--sha256", "content_hash", default="", help="Approve this content and no other.")
@_REASON
def schedule(card: str, version: int, starts: Timestamp, content_hash: str, reason: str) -> None:
    """Approve VERSION of CARD, to be in force from an instant on, later than its own."""
    _approve(card, version, content_hash, reason, starts)


def _approve(
    card: str, version: int, content_hash: str, reason: str, starts: Timestamp | None
) -> None:
    try:
        digest = bytes.fromhex(content_hash)
    except ValueError:
        raise click.BadParameter("--sha256 is 64 hexadecimal digits") from None
    request = cards_pb2.ApproveRateCardRequest(
        card_id=card, version=version, content_hash=digest, reason=reason, effective_from=starts
    )
    answer = ask(
        lambda to, timeout_s: to.cards.ApproveRateCard(
            request, timeout=timeout_s, metadata=operator_key()
        )
    )
    click.echo(
        f"card {_card(answer.card)} is approved, control position {answer.position};"
        f" it prices events from {rfc3339(us_of(answer.effective_from))} on"
    )


@click.command()
@click.argument("card")
@click.option("--version", type=click.IntRange(min=1), help="By default all of it.")
@click.option("--at", "ends", type=INSTANT, help="First instant it no longer prices; now.")
@_REASON
def retire(card: str, version: int | None, ends: Timestamp | None, reason: str) -> None:
    """End CARD, or one version of it: what was below it applies again.

    Needs the role approver.
    """
    request = cards_pb2.RetireRateCardRequest(
        card_id=card, version=version or 0, effective_to=ends, reason=reason
    )
    answer = ask(
        lambda to, timeout_s: to.cards.RetireRateCard(
            request, timeout=timeout_s, metadata=operator_key()
        )
    )
    which = f"{card}@{version}" if version else card
    click.echo(
        f"card {which} is retired, control position {answer.position};"
        f" it prices no event from {rfc3339(us_of(answer.effective_to))} on"
    )


@click.command()
@click.argument("card")
@_AT
@_KNOWN_AT
@_FOR_PROGRAMS
def history(
    card: str, at: Timestamp | None, known_at: Timestamp | None, for_programs: bool
) -> None:
    """Show every version of CARD, who did what to it and when, by both times."""
    request = cards_pb2.GetRateCardHistoryRequest(card_id=card, effective_at=at, known_at=known_at)
    answer = ask(lambda to, timeout_s: to.cards.GetRateCardHistory(request, timeout=timeout_s))
    if for_programs:
        click.echo(as_json(answer))
        return
    rows = [row for version in answer.versions for row in _history_rows(version)]
    head = ("VERSION", "STATUS", "FROM", "TO", "STEP", "BY", "RECORDED", "POSITION", "REASON")
    click.echo(table(head, rows))
    click.echo(f"\nknown at control size {answer.control_size}")


def _history_rows(version: cards_pb2.RateCardVersion) -> list[tuple[str | int, ...]]:
    status = cards_pb2.RateCardStatus.Name(version.status).removeprefix("RATE_CARD_STATUS_")
    ends = rfc3339(us_of(version.effective_to)) if version.HasField("effective_to") else "open"
    first = (
        f"{_card(version.card)}",
        status.lower(),
        rfc3339(us_of(version.effective_from)),
        ends,
    )
    return [
        (
            *(first if number == 0 else ("", "", "", "")),
            step.what,
            step.actor or "-",
            rfc3339(us_of(step.recorded_time)),
            step.position,
            step.reason or "-",
        )
        for number, step in enumerate(version.steps)
    ]


@click.command()
@click.argument("model")
@click.option("--account", default="", help="For this account; by default for any.")
@click.option("--currency", default="", help="Without an account; by default USD.")
@click.option("--tier", default="", help="Service tier; by default standard.")
@_AT
@_KNOWN_AT
@_FOR_PROGRAMS
def prices(
    model: str,
    account: str,
    currency: str,
    tier: str,
    at: Timestamp | None,
    known_at: Timestamp | None,
    for_programs: bool,
) -> None:
    """Show what MODEL's leaves cost, by both times: what an event of --at would be charged
    by what was known at --known-at.
    """
    request = cards_pb2.ListPricesRequest(
        model=model,
        account_id=account,
        currency=currency,
        service_tier=tier,
        effective_at=at,
        known_at=known_at,
    )
    answer = ask(lambda to, timeout_s: to.cards.ListPrices(request, timeout=timeout_s))
    if for_programs:
        click.echo(as_json(answer))
        return
    rows = [
        (
            price.leaf,
            f"{format_pico(int(price.unit_price.amount_pico))} {price.unit_price.currency}",
            _card(price.card),
            price.line_id,
        )
        for price in answer.prices
    ]
    if rows:
        click.echo(table(("LEAF", "PRICE OF ONE", "CARD", "LINE"), rows))
    else:
        click.echo(f"{model} has no price: its usage would wait in suspense")
    click.echo(f"\nknown at control size {answer.control_size}")


@click.command()
@click.argument("what")
@click.option("--version", type=click.IntRange(min=1), help="Of a card: the newer one.")
@click.option("--against", type=click.IntRange(min=1), help="The older version.")
@_FOR_PROGRAMS
def diff(what: str, version: int | None, against: int | None, for_programs: bool) -> None:
    """Compare WHAT, a file or a card's id, line by line with an older version.

    By default the newest approved one before it.
    """
    file = Path(what)
    request = cards_pb2.DiffRateCardRequest(version=version or 0, base_version=against or 0)
    if file.suffix or file.is_file():
        request.yaml = read_card(file)
    else:
        request.card_id = what
    with refusing(file):
        answer = ask(lambda to, timeout_s: to.cards.DiffRateCard(request, timeout=timeout_s))
    if for_programs:
        click.echo(as_json(answer))
        return
    if not answer.changes:
        click.echo(f"nothing differs from {_card(answer.base)}")
        return
    base = _card(answer.base) if answer.base.version else "nothing: the card is new"
    click.echo(f"compared with {base}\n")
    rows = [
        (
            change.line_id or "(card)",
            change.field or "(line)",
            change.before or "-",
            change.after or "-",
            f"x {change.factor}" if change.factor else "",
        )
        for change in answer.changes
    ]
    click.echo(table(("LINE", "FIELD", "BEFORE", "AFTER", ""), rows))


def _card(card: pricing_pb2.CardRef) -> str:
    return f"{card.card_id}@{card.version}"
