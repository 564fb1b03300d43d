"""A statement's canonical JSON (pricing/domain/statement.py), read for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from kernel.errors import InvalidArgument
from kernel.money import format_pico

FORMAT: Final = "tollbook-statement-v1"


class Row(NamedTuple):
    """A line of a statement, as text; amounts are exact decimals of the currency's unit."""

    month: str
    what: str
    line: str
    rule: str
    units: str
    amount: str


class CreditRow(NamedTuple):
    """A change of credit, as text."""

    position: str
    kind: str
    other: str
    amount: str


class Entries(NamedTuple):
    """Which entries of a log the statement is of, as text."""

    log: str
    first: str
    end: str


class Statement(NamedTuple):
    """A statement, as text."""

    account_id: str
    currency: str
    period: str
    time_zone: str
    end_position: str
    closed_position: str
    entries: tuple[Entries, ...]
    opening: str
    credits: tuple[CreditRow, ...]
    own: tuple[Row, ...]
    """Lines of the period."""
    late: tuple[Row, ...]
    """Lines of months before it."""
    charged: str
    corrected: str
    rounding: str
    invoiced: str
    closing: str
    digest: str
    """SHA-256 of the canonical JSON, in hexadecimal."""


@contextmanager
def fields(document: bytes) -> Iterator[dict[str, Any]]:
    """The fields of a statement's canonical JSON, for whoever reads them within.

    Errors: InvalidArgument when it is no statement that this version knows.
    """
    try:
        made: dict[str, Any] = json.loads(document)
        if made["format"] != FORMAT:
            raise InvalidArgument(f"its format is {made['format']!r}, this version reads {FORMAT}")
        yield made
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(f"this is no statement: {error!r}") from None


def read(document: bytes, closed_position: int) -> Statement:
    """Read a statement; `closed_position` is that of the control record which holds its digest.

    Errors: InvalidArgument when it is no statement that this version knows.
    """
    with fields(document) as made:
        rows = [_row(line) for line in made["lines"]]
        period = made["period"]
        return Statement(
            made["account_id"],
            made["currency"],
            period,
            made["time_zone"],
            made["end_position"],
            str(closed_position),
            tuple(
                Entries(part["log"], part["from_position"], part["to_position"])
                for part in made["entries"]
            ),
            _money(made["opening_pico"]),
            tuple(
                CreditRow(one["position"], one["kind"], one["from"], _money(one["amount_pico"]))
                for one in made["credits"]
            ),
            tuple(row for row in rows if row.month == period),
            tuple(row for row in rows if row.month != period),
            _money(made["charged_pico"]),
            _money(made["corrected_pico"]),
            _money(made["rounding_pico"]),
            _money(made["invoiced_pico"]),
            _money(made["closing_pico"]),
            hashlib.sha256(document).hexdigest(),
        )


def _row(line: dict[str, str]) -> Row:
    card = f"{line['card_id']}@{line['card_version']}"
    what = card if line["kind"] == "usage" else f"{line['kind']}, {card}"
    return Row(
        line["month"],
        what,
        line["line_id"],
        "" if line["rule"] == line["kind"] else line["rule"],
        line["units"],
        _money(line["amount_pico"]),
    )


def _money(pico: str) -> str:
    return format_pico(int(pico))
