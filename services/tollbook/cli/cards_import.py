"""`tollbook cards import`: price lists that others publish, as rate cards in a folder."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from pathlib import Path

import click

from kernel.errors import InvalidArgument
from pricing.domain.card_yaml import parse_card
from pricing.domain.document import DocumentError
from pricing.domain.imports.genai_cards import Import, import_prices
from pricing.domain.imports.price_file import MAX_FILE_BYTES, PriceFileError, read_price_file

NAMES_FILE = "model-names.json"
"""In a folder of imported cards: which model a name in a response means."""

_GZIP = b"\x1f\x8b"


@click.group("import")
def import_() -> None:
    """Turn a public price list into rate cards."""


@import_.command("genai-prices")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder to make; it may not hold anything yet.",
)
def genai_prices(file: Path, folder: Path) -> None:
    """Make rate cards of FILE, the data file of genai-prices (JSON, may be gzipped).

    One card for each provider, one file for each date on which its prices change, and
    model-names.json, by which `tollbook rate` finds a model under its many names. A model
    is called PROVIDER/MODEL. What had to be rounded, or cannot be said in a card, is listed.
    """
    try:
        made = import_prices(read_price_file(_read(file)))
    except PriceFileError as error:
        raise InvalidArgument(f"{file}: {error}") from None
    _check(made)
    _write(made, folder)
    for line in report(made, folder):
        click.echo(line)


def _read(file: Path) -> bytes:
    """The file's bytes, unpacked. Errors: InvalidArgument."""
    try:
        with file.open("rb") as opened:
            packed = opened.read(2) == _GZIP
        with gzip.open(file) if packed else file.open("rb") as source:
            data = source.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror or error}") from None
    except EOFError:
        raise InvalidArgument(f"{file} is cut off: its gzip stream has no end") from None
    if len(data) > MAX_FILE_BYTES:
        raise InvalidArgument(f"{file} is over {MAX_FILE_BYTES} bytes")
    return data


def _check(made: Import) -> None:
    """Every card must be one that `cards validate` accepts; else the import is at fault."""
    for name, text in made.cards.items():
        try:
            parse_card(text)
        except DocumentError as error:
            raise InvalidArgument(f"{name} would be no card: {error.problems[0]}") from None


def _write(made: Import, folder: Path) -> None:
    """All files or none: they appear under the folder's name at once."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidArgument(f"{folder} is there already, and not empty; name another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            making.chmod(0o755)
            for name, text in made.cards.items():
                (making / name).write_text(text, encoding="utf-8")
            (making / NAMES_FILE).write_text(made.names.document(), encoding="utf-8")
            # Onto an empty folder a rename succeeds; onto any other it fails.
            os.rename(making, folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise InvalidArgument(f"{folder} cannot be written: {error.strerror or error}") from None


def report(made: Import, folder: Path) -> list[str]:
    """What came of it, every exception by name."""
    said = [
        f"{made.models} models: {len(made.cards)} cards with {made.lines} lines in {folder}",
        f"rounded to whole pico-units for one unit: {len(made.rounded)}",
    ]
    said += [f"  {one.model} {one.key}: {one.stated} -> {one.used}" for one in made.rounded]
    said.append(f"cannot be said in a card: {len(made.not_expressed)}")
    said += [f"  {model}: {what}" for model, what in made.not_expressed]
    said.append(f"no price for output, which would wait in suspense: {len(made.without_output)}")
    said += [f"  {model}" for model in made.without_output]
    return said
