"""`tollbook rate`: what the lines of a usage file cost by the cards of a folder. Asks no service.

Reads and writes line by line, so a file may be longer than the memory. Every
line of the file gives one line of the answer, also one that cannot be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import BinaryIO, Final, TextIO

import click
from google.protobuf.timestamp_pb2 import Timestamp

from kernel.clock import rfc3339, us_of
from kernel.errors import InvalidArgument
from kernel.money import format_pico
from pricing.domain.card import COST, SELL, Card
from pricing.domain.card_yaml import parse_card
from pricing.domain.catalogue import Priced
from pricing.domain.dimensions import LeafKey
from pricing.domain.document import DocumentError
from pricing.domain.imports import model_names
from pricing.domain.imports.model_names import ModelNames
from pricing.domain.offline import OfflineRater, RatedLine, currencies, tied
from pricing.domain.rating import RatedLeaf
from pricing.domain.readers import json_line
from pricing.domain.readers.reading import OUT_OF_RANGE, UsageReadError
from pricing.domain.readers.usage_line import UsageLine, read_line
from pricing.domain.text import printable
from tollbook.cli.card_files import fail, read_card
from tollbook.cli.cards_import import NAMES_FILE
from tollbook.cli.instants import INSTANT

MAX_LINE_BYTES: Final = 1024 * 1024
MAX_CARDS: Final = 10_000
MAX_NAMES_BYTES: Final = 64 * 1024 * 1024
INCOMPLETE: Final = 3
"""Exit status when some line was bad, or has a leaf without a price."""

_COMPACT: Final = (",", ":")
_MAX_REMEMBERED: Final = 100_000


@click.command()
@click.option(
    "--cards",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of rate cards (*.yaml), published in the order of their names.",
)
@click.option(
    "--usage",
    "file",
    type=click.Path(path_type=Path),
    required=True,
    help="JSON lines; - is stdin.",
)
@click.option("--as-of", type=INSTANT, help="Rate every line as of this instant, not its own.")
@click.option("--currency", default="", help="Whose prices, where the cards have several.")
@click.option(
    "--purpose",
    type=click.Choice([SELL, COST]),
    default=SELL,
    show_default=True,
    help="By which cards: what accounts pay, or what it costs us.",
)
@click.option("--json", "for_programs", is_flag=True, help="For programs: one JSON object a line.")
def rate(
    folder: Path,
    file: Path,
    as_of: Timestamp | None,
    currency: str,
    purpose: str,
    for_programs: bool,
) -> None:
    """Rate the usage in FILE, one line of answer for each of its lines.

    Exit 0 when all is rated; 3 when a line was bad or a leaf has no price; the counts are on
    stderr. A line is a usage object of OpenAI, Anthropic, Gemini or vLLM with its model, or
    one of our own events: docs/rating-offline.md.
    """
    cards = _cards(folder)
    meant = [card for card in cards if card.purpose == purpose]
    if not meant:
        raise InvalidArgument(f"{folder} has no card of purpose {purpose!r}")
    currency = _currency(meant, currency)
    as_of_us = None if as_of is None else us_of(as_of)
    rater = OfflineRater(cards, currency, _names(folder), as_of_us, purpose)
    out: _JsonLines | _TextLines
    out = _JsonLines(sys.stdout, currency) if for_programs else _TextLines(sys.stdout, currency)
    with _opened(file) as source:
        rated, unpriced, bad = _run(rater, source, out)
    sys.stdout.flush()
    click.echo(f"{rated} rated, {unpriced} with a leaf that has no price, {bad} bad", err=True)
    if unpriced or bad:
        sys.exit(INCOMPLETE)


def _opened(file: Path) -> BinaryIO:
    if str(file) == "-":
        return sys.stdin.buffer
    try:
        # A large buffer: lines are short, and the file may be long.
        return file.open("rb", buffering=MAX_LINE_BYTES)
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror}") from None


def _run(
    rater: OfflineRater, source: BinaryIO, out: _JsonLines | _TextLines
) -> tuple[int, int, int]:
    """Rate line by line: (rated, with an unpriced leaf, bad)."""
    rated = unpriced = bad = 0
    for number, data in _lines(source):
        decoded: object = None
        try:
            decoded = _decoded(data)
            line = read_line(decoded)
            result = rater.rate(line)
        except UsageReadError as error:
            bad += 1
            out.bad(number, _id_of(decoded), error)
            continue
        if result.unpriced:
            unpriced += 1
        else:
            rated += 1
        out.rated(number, line, result)
    return rated, unpriced, bad


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not blank, by number from 1; None for one that is too long to be read."""
    number = 0
    while data := source.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(data) > MAX_LINE_BYTES and not data.endswith(b"\n"):
            while (rest := source.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        elif data.strip():
            yield number, data


def _decoded(data: bytes | None) -> object:
    if data is None:
        raise UsageReadError("", OUT_OF_RANGE, f"longer than {MAX_LINE_BYTES} bytes")
    return json_line.decode(data)


def _id_of(decoded: object) -> str:
    """The id of a line that could not be read, if that much of it can be."""
    if not isinstance(decoded, dict):
        return ""
    found = decoded.get("id") or decoded.get("event_id") or decoded.get("eventId")
    return found if isinstance(found, str) and len(found) <= 256 else ""


class _TextLines:
    """For people: the line, what it costs, the model, and what is wrong."""

    def __init__(self, to: TextIO, currency: str) -> None:
        self._to = to
        self._currency = currency

    def rated(self, number: int, line: UsageLine, result: RatedLine) -> None:
        """One rated line."""
        if result.unpriced:
            said = f"no price for {result.unpriced} of {len(result.leaves)} leaves"
        else:
            said = f"{format_pico(result.amount_pico)} {self._currency}"
        self._to.write(f"{number}  {said}  {printable(result.context.model)}\n")

    def bad(self, number: int, line_id: str, error: UsageReadError) -> None:
        """One line that could not be read."""
        who = line_id and line_id + ": "
        self._to.write(f"{number}  bad: {printable(f'{who}{error}')}\n")


def _amount(amount_pico: int) -> str:
    return f'"amount":"{format_pico(amount_pico)}","amount_pico":"{amount_pico}"'


class _JsonLines:
    """For programs. Parts that repeat are written once and kept, up to a limit."""

    def __init__(self, to: TextIO, currency: str) -> None:
        self._to = to
        self._currency = currency
        self._keys: dict[LeafKey, str] = {}
        self._prices: dict[int, tuple[Priced, str]] = {}

    def rated(self, number: int, line: UsageLine, result: RatedLine) -> None:
        """One rated line."""
        leaves = ",".join([self._leaf(leaf) for leaf in result.leaves])
        # Where a leaf has no price nobody knows the amount; it is not what the others cost.
        amount = (
            '"amount":null,"amount_pico":null' if result.unpriced else _amount(result.amount_pico)
        )
        taken = f',"commitment_pico":"{result.commitment_pico}"' if result.commitment_pico else ""
        self._to.write(
            f'{{"line":{number},"id":{_quoted(line.line_id)},'
            f'"account":{_quoted(line.account_id)},'
            f'"model":{_quoted(result.context.model)},'
            f'"service_tier":{_quoted(result.context.service_tier)},'
            f'"at":"{rfc3339(result.at_us)}","currency":"{self._currency}",'
            f"{amount},"
            f'"unpriced_leaves":{result.unpriced}{taken},"leaves":[{leaves}]}}\n'
        )

    def _leaf(self, leaf: RatedLeaf) -> str:
        key = self._keys.get(leaf.leaf.key)
        if key is None:
            key = json.dumps(leaf.leaf.key._asdict(), separators=_COMPACT)[1:-1]
            if len(self._keys) < _MAX_REMEMBERED:
                self._keys[leaf.leaf.key] = key
        if leaf.priced is None:
            return f'{{{key},"amount_units":{leaf.leaf.amount},"card":null}}'
        return (
            f'{{{key},"amount_units":{leaf.leaf.amount},"charged_units":{leaf.charged},'
            f'{self._price(leaf.priced)},"outcome_rule":"{leaf.outcome_rule}",'
            f"{_amount(leaf.amount_pico)}}}"
        )

    def _price(self, priced: Priced) -> str:
        # By identity: the catalogue gives the same object for the same question.
        kept = self._prices.get(id(priced))
        if kept is not None and kept[0] is priced:
            return kept[1]
        known = priced.published
        text = json.dumps(
            {
                "card": known.card.card_id,
                "version": known.version,
                "sha256": known.content_hash.hex(),
                "line": priced.line.line_id,
                "rule": priced.rule_text,
            },
            separators=_COMPACT,
        )[1:-1]
        if len(self._prices) < _MAX_REMEMBERED:
            self._prices[id(priced)] = (priced, text)
        return text

    def bad(self, number: int, line_id: str, error: UsageReadError) -> None:
        """One line that could not be read."""
        what = {"field": error.field, "reason": error.reason, "message": error.message}
        text = json.dumps(what, separators=_COMPACT)
        self._to.write(f'{{"line":{number},"id":{_quoted(line_id)},"error":{text}}}\n')


def _cards(folder: Path) -> list[Card]:
    """The cards of a folder, in the order of file names. Ends the command at a bad one."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    except OSError as error:
        raise InvalidArgument(f"{folder} cannot be read: {error.strerror}") from None
    if not files or len(files) > MAX_CARDS:
        raise InvalidArgument(
            f"{folder} has {len(files)} cards (*.yaml); 1 to {MAX_CARDS} are read"
        )
    found: list[Card] = []
    for file in files:
        try:
            found.append(parse_card(read_card(file)))
        except DocumentError as error:
            fail(file, [str(problem) for problem in error.problems])
    if problem := tied(found):
        raise InvalidArgument(problem)
    return found


def _currency(cards: list[Card], wanted: str) -> str:
    known = currencies(cards)
    if wanted and wanted not in known:
        raise InvalidArgument(f"no card has prices in {wanted}; there are {', '.join(known)}")
    if not wanted and len(known) > 1:
        raise InvalidArgument(f"the cards have prices in {', '.join(known)}; say --currency")
    return wanted or known[0]


def _names(folder: Path) -> ModelNames | None:
    """The names of models that stand beside imported cards, or None."""
    file = folder / NAMES_FILE
    if not file.exists():
        return None
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_NAMES_BYTES + 1)
        if len(data) > MAX_NAMES_BYTES:
            raise InvalidArgument(f"{file} is over {MAX_NAMES_BYTES} bytes")
        return model_names.read_document(data.decode())
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidArgument(f"{file}: {error}") from None
