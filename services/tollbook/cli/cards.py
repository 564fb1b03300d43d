"""`tollbook cards`: rate cards from YAML to live."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kernel.errors import InvalidArgument
from pricing.domain.card_yaml import parse_card
from pricing.domain.document import MAX_DOCUMENT_BYTES, DocumentError
from tollbook.cli.pricing_calls import RefusedError, ask
from tollbook.pricing.v1 import pricing_pb2

_FILE = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def cards() -> None:
    """Check and publish rate cards."""


@cards.command()
@_FILE
@click.option("--offline", is_flag=True, help="Check the card's own rules alone; ask no service.")
def validate(file: Path, offline: bool) -> None:
    """Check the card in FILE; nothing is recorded.

    Exit 0 when it could be published, else 1 with the line of every problem.
    """
    yaml = _read(file)
    if offline:
        _validate_here(file, yaml)
        return
    card = _publish(file, pricing_pb2.PublishRateCardRequest(yaml=yaml, validate_only=True)).card
    click.echo(f"{file}: card {card.card_id} is good; it would be version {card.version}")


@cards.command()
@_FILE
@click.option("--author", default="", help="Who wrote it.")
@click.option("--approver", default="", help="Who approved it.")
@click.option("--reason", default="", help="Why.")
def publish(file: Path, author: str, approver: str, reason: str) -> None:
    """Publish the card in FILE; the same content again is no new version."""
    request = pricing_pb2.PublishRateCardRequest(
        yaml=_read(file), author=author, approver=approver, reason=reason
    )
    answer = _publish(file, request)
    card = answer.card
    click.echo(
        f"card {card.card_id} version {card.version}, control position {answer.position},"
        f" sha256 {card.content_hash.hex()}"
    )


def _read(file: Path) -> str:
    """The file's text. Errors: InvalidArgument with why it cannot be one."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror}") from None
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidArgument(f"{file} is over {MAX_DOCUMENT_BYTES} bytes; split the card")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InvalidArgument(f"{file}: line {line}: not UTF-8 text") from None


def _publish(
    file: Path, request: pricing_pb2.PublishRateCardRequest
) -> pricing_pb2.PublishRateCardResponse:
    """Ask the service; a card with problems ends the command with a line for each."""
    try:
        return ask(lambda to, timeout_s: to.control.PublishRateCard(request, timeout=timeout_s))
    except RefusedError as error:
        if error.reason != "INVALID_RATE_CARD" or not error.violations:
            raise
        _fail(file, [f"{place}: {what}" for place, what in error.violations])
        raise AssertionError("_fail ends the command") from None


def _validate_here(file: Path, yaml: str) -> None:
    try:
        card = parse_card(yaml)
    except DocumentError as error:
        _fail(file, [str(problem) for problem in error.problems])
        return
    click.echo(f"{file}: card {card.card_id} is good: {len(card.lines)} lines")


def _fail(file: Path, problems: list[str]) -> None:
    for problem in problems:
        click.echo(f"{file}: {problem}", err=True)
    click.echo(f"tollbook: {file} is no card that can be used; see the lines above", err=True)
    sys.exit(1)
