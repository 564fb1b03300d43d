"""`tollbook cards preview`: a draft tried on the log's own usage."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from kernel.money import format_pico
from tollbook.cli.card_files import FILE, finding_words, read_card, refusing
from tollbook.cli.pricing_calls import REHEARSAL_S, as_json, ask
from tollbook.cli.tables import table
from tollbook.pricing.v1 import cards_pb2


@click.command()
@FILE
@click.option(
    "--newest",
    type=click.IntRange(min=1),
    help="Rate so many of each log's newest entries; by default all.",
)
@click.option("--top", default=20, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--json", "for_programs", is_flag=True, help="For programs.")
def preview(file: Path, newest: int | None, top: int, for_programs: bool) -> None:
    """Rate the log's own usage by the card in FILE and show what would change.

    As if the card had been in force all along, instead of its other versions.
    Nothing is recorded.
    """
    request = cards_pb2.PreviewRateCardRequest(
        yaml=read_card(file), max_entries=newest or 0, top=top
    )
    with refusing(file):
        answer = ask(
            lambda to, timeout_s: to.cards.PreviewRateCard(request, timeout=timeout_s), REHEARSAL_S
        )
    if for_programs:
        click.echo(as_json(answer))
        return
    click.echo(f"{answer.events} events rated again\n")
    click.echo(changes_table("TOTAL", answer.totals))
    if answer.models:
        click.echo(f"\nmodels that change: {answer.models_changed}\n")
        click.echo(changes_table("MODEL", answer.models))
    if answer.losers:
        click.echo("\naccounts that pay more\n")
        click.echo(changes_table("ACCOUNT", answer.losers))
    if answer.winners:
        click.echo("\naccounts that pay less\n")
        click.echo(changes_table("ACCOUNT", answer.winners))
    if answer.unmatched_lines:
        click.echo(f"\nlines that priced nothing: {', '.join(answer.unmatched_lines)}")
    for unpriced in answer.newly_unpriced:
        click.echo(
            f"\nNO PRICE ANY MORE: {unpriced.model} {unpriced.leaf}, {unpriced.entries} entries"
        )
    for unpriced in answer.still_unpriced:
        click.echo(
            f"\nstill no price: {unpriced.model} {unpriced.leaf}, {unpriced.entries} entries"
        )
    for flag in answer.flags:
        click.echo(f"\nLOOK AGAIN: {finding_words(flag)} [{flag.reason}]")


def changes_table(what: str, changes: Iterable[cards_pb2.ChargeChange]) -> str:
    """What is charged before and after, a row for each name."""
    rows = []
    for change in changes:
        before, after = int(change.before.amount_pico), int(change.after.amount_pico)
        rows.append(
            (
                change.name or change.before.currency,
                f"{format_pico(before)} {change.before.currency}",
                f"{format_pico(after)} {change.before.currency}",
                f"{'+' if after > before else ''}{format_pico(after - before)}",
                percent(before, after),
            )
        )
    return table((what, "BEFORE", "AFTER", "CHANGE", ""), rows)


def percent(before: int, after: int) -> str:
    """By how much of it an amount changes: `+12.5%`."""
    if not before:
        return "new" if after else "="
    tenths = abs(after - before) * 1_000 // abs(before)
    return f"{'-' if after < before else '+'}{tenths // 10}.{tenths % 10}%"
