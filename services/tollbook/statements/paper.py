"""A statement as PDF: A4, the same bytes for the same statement."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.platypus import LongTable, Paragraph, SimpleDocTemplate, Spacer, TableStyle

from tollbook.statements.reading import Row, Statement

_MARGIN: Final = 18 * mm
_TEXT: Final = ParagraphStyle("text", fontName="Helvetica", fontSize=8, leading=10)
_NUMBER: Final = ParagraphStyle("number", parent=_TEXT, alignment=2)
_HEAD: Final = ParagraphStyle("head", parent=_TEXT, fontName="Helvetica-Bold")
_NUMBER_HEAD: Final = ParagraphStyle("number-head", parent=_HEAD, alignment=2)
_TITLE: Final = ParagraphStyle("title", parent=_HEAD, fontSize=14, leading=18)
_SECTION: Final = ParagraphStyle(
    "section", parent=_HEAD, fontSize=10, leading=13, spaceBefore=10, spaceAfter=3
)
_FOOT: Final = ParagraphStyle("foot", parent=_TEXT, fontSize=7, leading=9, splitLongWords=1)
_GRID: Final = TableStyle(
    [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LINEBELOW", (0, 0), (-1, -1), 0.25, colors.lightgrey),
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("RIGHTPADDING", (0, 0), (-1, -1), 4),
        ("TOPPADDING", (0, 0), (-1, -1), 1),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
    ]
)


def pdf(statement: Statement) -> bytes:
    """The document."""
    out = io.BytesIO()
    document = SimpleDocTemplate(
        out,
        pagesize=A4,
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN,
        title=f"Statement {statement.account_id} {statement.period}",
        author="Tollbook",
        # No time of making and no random id: what differs is the statement.
        invariant=1,
    )
    document.build(_story(statement), onFirstPage=_number, onLaterPages=_number)
    return out.getvalue()


def _number(canvas: Any, document: Any) -> None:
    canvas.setFont("Helvetica", 7)
    canvas.drawRightString(A4[0] - _MARGIN, _MARGIN / 2, f"page {document.page}")


def _story(statement: Statement) -> list[Any]:
    totals = [
        ("Credit at the beginning", statement.opening),
        ("Charged for the period", statement.charged),
        ("Corrected of earlier months", statement.corrected),
        ("Rounding", statement.rounding),
        ("Invoiced", statement.invoiced),
        ("Credit at the end", statement.closing),
    ]
    story: list[Any] = [
        Paragraph(f"Statement of account {escape(statement.account_id)}", _TITLE),
        Paragraph(
            escape(f"{statement.period} by {statement.time_zone}, in {statement.currency}"), _TEXT
        ),
        Spacer(1, 4 * mm),
        _table(("", statement.currency), totals, (110, 64)),
    ]
    story += _lines(f"Charges of {statement.period}", statement.own, statement.currency)
    story += _lines("Corrections of earlier months", statement.late, statement.currency)
    if statement.credits:
        head = ("Control position", "Kind", "Other side", statement.currency)
        story.append(Paragraph("Changes of credit", _SECTION))
        story.append(_table(head, statement.credits, (32, 30, 74, 38)))
    entries = " ".join(
        f"Entries [{part.first}, {part.end}) of log {part.log}." for part in statement.entries
    )
    story.append(Spacer(1, 6 * mm))
    story.append(
        Paragraph(
            escape(
                f"True at control position {statement.end_position}, closed by the record at"
                f" {statement.closed_position}. {entries} SHA-256 of the canonical form:"
                f" {statement.digest}"
            ),
            _FOOT,
        )
    )
    return story


def _lines(title: str, rows: Sequence[Row], currency: str) -> list[Any]:
    if not rows:
        return []
    head = ("Month", "Card", "Line", "Rule", "Units", currency)
    return [Paragraph(title, _SECTION), _table(head, rows, (16, 42, 34, 24, 26, 32))]


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], widths_mm: Sequence[int]
) -> LongTable:
    """A table whose last column is an amount, and the one before it a count if it is `Units`."""
    numbers = {len(head) - 1, *(at for at, name in enumerate(head) if name == "Units")}
    cells = [
        [
            Paragraph(escape(text), _NUMBER_HEAD if at in numbers else _HEAD)
            for at, text in enumerate(head)
        ]
    ]
    cells += [
        [
            Paragraph(escape(text), _NUMBER if at in numbers else _TEXT)
            for at, text in enumerate(row)
        ]
        for row in rows
    ]
    table = LongTable(cells, colWidths=[width * mm for width in widths_mm], repeatRows=1)
    table.setStyle(_GRID)
    return table
