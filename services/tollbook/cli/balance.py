"""`tollbook balance | receipt | postings`: what was charged, why, and what is left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

from kernel.clock import rfc3339, us_of
from kernel.money import format_pico
from tollbook.cli.instants import INSTANT
from tollbook.cli.pricing_calls import as_json, ask
from tollbook.cli.tables import table
from tollbook.listing import all_balances
from tollbook.pricing.v1 import money_pb2, pricing_pb2
from tollbook.usage.v1 import usage_pb2 as usage

_PAGE: Final = 1_000
_FOR_PROGRAMS = click.option("--json", "for_programs", is_flag=True, help="For programs.")


@click.command()
@click.argument("account", required=False)
@click.option("--as-of", type=INSTANT, help="By events of before this minute, by their own time.")
@_FOR_PROGRAMS
def balance(account: str | None, as_of: Timestamp | None, for_programs: bool) -> None:
    """Show the balance of ACCOUNT, or all balances, and the log positions they are true at."""
    if account is None and as_of is not None:
        raise click.UsageError("--as-of is of one account: name it")
    if account is None:
        listed = ask(lambda to, timeout_s: all_balances(to.pricing, timeout_s))
        if for_programs:
            click.echo(as_json(listed))
            return
        click.echo(table(_HEAD, [_row(one) for one in listed.balances]))
        click.echo(f"\nat {_positions(listed.positions)}")
        click.echo(f"digest {listed.balances_digest.hex()}")
        return
    request = pricing_pb2.GetBalanceRequest(account_id=account, as_of_time=as_of)
    answer = ask(lambda to, timeout_s: to.pricing.GetBalance(request, timeout=timeout_s))
    if for_programs:
        click.echo(as_json(answer))
        return
    if as_of is None:
        click.echo(table(_HEAD, [_row(answer.balance)]))
    else:
        # What was used and what waited is not kept by the minute: no 0 is shown for it.
        click.echo(table(_HEAD[:5], [_row(answer.balance)[:5]]))
    click.echo(f"\nat {_positions(answer.positions)}")


@click.command()
@click.argument("account")
@click.argument("event")
@_FOR_PROGRAMS
def receipt(account: str, event: str, for_programs: bool) -> None:
    """Show what EVENT of ACCOUNT was charged, line by line, rated anew from the log."""
    request = pricing_pb2.GetReceiptRequest(account_id=account, event_id=event)
    answer = ask(lambda to, timeout_s: to.pricing.GetReceipt(request, timeout=timeout_s)).receipt
    if for_programs:
        click.echo(as_json(answer))
        return
    outcome = usage.Outcome.Name(answer.outcome).removeprefix("OUTCOME_").lower()
    click.echo(f"{answer.event_id} of {answer.account_id}: {answer.served_model}, {outcome}")
    click.echo(
        f"{answer.log} position {answer.position}, priced as of"
        f" {rfc3339(us_of(answer.event_time))} under control size {answer.control_size}\n"
    )
    head = ("LEAF", "COUNT", "CHARGED", "RULE", "CARD", "LINE", "UNIT PRICE", "AMOUNT")
    click.echo(table(head, [_line(line) for line in answer.lines]))
    click.echo(f"\ntotal {_money(answer.total)}" if answer.HasField("total") else "\ntotal none")
    for correction in answer.corrections:
        click.echo(f"set right by re-rating {correction.rerate_id}: {_money(correction.total)}")
    if answer.suspense:
        click.echo("A leaf has no price yet and waits in suspense: publish a card that prices it.")


@click.command()
@click.argument("account")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000))
@_FOR_PROGRAMS
def postings(account: str, limit: int, for_programs: bool) -> None:
    """Show the postings of ACCOUNT, newest first."""
    found: list[pricing_pb2.Posting] = []
    token = ""
    while len(found) < limit:
        request = pricing_pb2.ListPostingsRequest(
            account_id=account, page_size=min(_PAGE, limit - len(found)), page_token=token
        )
        answer = _postings(request)
        found += answer.postings
        token = answer.next_page_token
        if not token:
            break
    if for_programs:
        click.echo(as_json(pricing_pb2.ListPostingsResponse(postings=found, next_page_token=token)))
        return
    head = ("ID", "KIND", "DEBIT", "CREDIT", "AMOUNT", "FROM THE LOG", "CARD", "LINE", "UNITS")
    rows = [
        (
            posting.posting_id,
            posting.kind,
            posting.debit_account,
            posting.credit_account,
            _money(posting.amount),
            f"{posting.log} [{posting.from_position}, {posting.to_position})",
            _card(posting.card),
            posting.line_id or "-",
            posting.quantity,
        )
        for posting in found
    ]
    click.echo(table(head, rows))
    if token:
        click.echo(f"\nThere are more; see them with --limit {limit * 10}.")


def _postings(request: pricing_pb2.ListPostingsRequest) -> pricing_pb2.ListPostingsResponse:
    return ask(lambda to, timeout_s: to.pricing.ListPostings(request, timeout=timeout_s))


_HEAD: Final = (
    "ACCOUNT",
    "CURRENCY",
    "AVAILABLE",
    "GRANTED",
    "CHARGED",
    "REQUESTS",
    "INPUT",
    "CACHED",
    "OUTPUT",
    "SUSPENSE",
)


def _row(one: pricing_pb2.AccountBalance) -> tuple[str | int, ...]:
    return (
        one.account_id,
        one.available.currency,
        format_pico(int(one.available.amount_pico)),
        format_pico(int(one.granted.amount_pico)),
        format_pico(int(one.charged.amount_pico)),
        one.usage.requests,
        one.usage.input_tokens,
        one.usage.cached_tokens,
        one.usage.output_tokens,
        one.suspense_entries,
    )


def _line(line: pricing_pb2.ReceiptLine) -> tuple[str | int, ...]:
    return (
        _leaf(line.leaf),
        line.leaf.amount,
        line.charged_quantity,
        line.outcome_rule or "-",
        _card(line.card),
        line.line_id or "waits",
        format_pico(int(line.unit_price_pico)) if line.unit_price_pico else "-",
        format_pico(int(line.amount.amount_pico)) if line.HasField("amount") else "-",
    )


def _leaf(leaf: usage.Quantity) -> str:
    """A leaf's dimensions, those that say something."""
    words = [
        usage.Unit.Name(leaf.unit).removeprefix("UNIT_"),
        usage.Direction.Name(leaf.direction).removeprefix("DIRECTION_"),
        usage.Modality.Name(leaf.modality).removeprefix("MODALITY_"),
        usage.CacheUse.Name(leaf.cache_use).removeprefix("CACHE_USE_"),
        usage.CacheTtl.Name(leaf.cache_ttl).removeprefix("CACHE_TTL_"),
        usage.TokenKind.Name(leaf.token_kind).removeprefix("TOKEN_KIND_"),
        leaf.attribute,
    ]
    silent = {"UNSPECIFIED", "TEXT", "PLAIN", "NONE", ""}
    return " ".join(word.lower() for word in words if word not in silent)


def _card(card: pricing_pb2.CardRef) -> str:
    return f"{card.card_id}@{card.version}" if card.card_id else "-"


def _money(amount: money_pb2.Amount) -> str:
    return f"{format_pico(int(amount.amount_pico))} {amount.currency}"


def _positions(positions: Iterable[pricing_pb2.LogPosition]) -> str:
    return ", ".join(f"{at.log} {at.size}" for at in positions)
