"""A statement as one HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tollbook.statements.reading import Statement

_TEMPLATE: Final = "statement.html.j2"


def html(statement: Statement) -> str:
    """The page. Every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(_TEMPLATE).render(statement=statement)
