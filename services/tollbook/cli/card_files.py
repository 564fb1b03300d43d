"""A rate card's file as commands take it: read, and every problem of it told by its line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from kernel.errors import InvalidArgument
from pricing.domain.document import MAX_DOCUMENT_BYTES
from tollbook.cli.pricing_calls import RefusedError
from tollbook.pricing.v1 import cards_pb2

FILE = click.argument("file", type=click.Path(path_type=Path))


def read_card(file: Path) -> str:
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


@contextmanager
def refusing(file: Path) -> Iterator[None]:
    """A call with a card: its problems end the command, a line for each."""
    try:
        yield
    except RefusedError as error:
        if error.reason != "INVALID_RATE_CARD" or not error.violations:
            raise
        fail(file, [f"{place}: {what}" for place, what in error.violations])


def fail(file: Path, problems: Sequence[str]) -> NoReturn:
    """End the command with status 1 and a line for each problem."""
    for problem in problems:
        click.echo(f"{file}: {problem}", err=True)
    click.echo(f"tollbook: {file} is no card that can be used; see the lines above", err=True)
    sys.exit(1)


def finding_words(found: cards_pb2.Finding) -> str:
    """A finding as a line: with its place, if it has one."""
    place = f"line {found.line}, column {found.column}: " if found.line else ""
    return f"{place}{found.message}"
