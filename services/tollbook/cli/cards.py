"""`tollbook cards`: rate cards from YAML to live."""

from __future__ import annotations

from pathlib import Path

import click

from pricing.domain.card_yaml import parse_card
from pricing.domain.document import DocumentError
from tollbook.cli import card_life, card_preview, cards_import
from tollbook.cli.card_files import FILE, fail, finding_words, read_card, refusing
from tollbook.cli.pricing_calls import REHEARSAL_S, ask
from tollbook.pricing.v1 import cards_pb2, pricing_pb2


@click.group()
def cards() -> None:
    """Check and publish rate cards."""


@cards.command()
@FILE
@click.option("--offline", is_flag=True, help="Check the card's own rules alone; ask no service.")
def validate(file: Path, offline: bool) -> None:
    """Check the card in FILE; nothing is recorded.

    Exit 0 when it could be proposed, else 1 with the line of every problem.
    A tie with another card is one. What else is odd beside the cards in force and the usage of
    late (gaps, models in use without a price, units) is told too, and refuses nothing.
    """
    yaml = read_card(file)
    if offline:
        _validate_here(file, yaml)
        return
    request = cards_pb2.ValidateRateCardRequest(yaml=yaml)
    answer = ask(
        lambda to, timeout_s: to.cards.ValidateRateCard(request, timeout=timeout_s), REHEARSAL_S
    )
    errors = [one for one in answer.findings if one.severity == cards_pb2.SEVERITY_ERROR]
    if errors:
        fail(file, [finding_words(one) for one in errors])
    for one in answer.findings:
        click.echo(f"{file}: {finding_words(one)} [{one.reason}]", err=True)
    card = answer.card
    click.echo(f"{file}: card {card.card_id} is good; it would be version {card.version}")


@cards.command()
@FILE
@click.option("--author", default="", help="Who wrote it.")
@click.option("--approver", default="", help="Who approved it.")
@click.option("--reason", default="", help="Why.")
def publish(file: Path, author: str, approver: str, reason: str) -> None:
    """Publish the card in FILE in one step; the same content again is no new version.

    For a house without operators: from the first one on, a card is proposed by
    one and approved by another.
    """
    request = pricing_pb2.PublishRateCardRequest(
        yaml=read_card(file), author=author, approver=approver, reason=reason
    )
    with refusing(file):
        answer = ask(lambda to, timeout_s: to.control.PublishRateCard(request, timeout=timeout_s))
    card = answer.card
    click.echo(
        f"card {card.card_id} version {card.version}, control position {answer.position},"
        f" sha256 {card.content_hash.hex()}"
    )


def _validate_here(file: Path, yaml: str) -> None:
    try:
        card = parse_card(yaml)
    except DocumentError as error:
        fail(file, [str(problem) for problem in error.problems])
    click.echo(f"{file}: card {card.card_id} is good: {len(card.lines)} lines")


for _command in (
    card_life.diff,
    card_preview.preview,
    card_life.propose,
    card_life.approve,
    card_life.schedule,
    card_life.retire,
    card_life.history,
    card_life.prices,
    cards_import.import_,
):
    cards.add_command(_command)
