"""YAML with places: every value knows its line and column, every scalar its own text.

Owns reading a document into plain nodes. It knows nothing of rate cards.
Scalars stay text: `0.15` must reach the exact decimal reader as written and
never become a float on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import yaml

MAX_DOCUMENT_BYTES: Final = 900_000
_MAX_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where (line and column from 1)."""

    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"


class DocumentError(ValueError):
    """A document that cannot be used; `problems` has every reason found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


class Node:
    """One value of a document: a text, a list or a mapping, with its place."""

    __slots__ = ("column", "line", "value")

    def __init__(
        self, line: int, column: int, value: str | list[Node] | dict[str, tuple[Node, Node]]
    ) -> None:
        self.line = line
        self.column = column
        self.value = value

    def problem(self, message: str) -> Problem:
        """Say what is wrong with this value."""
        return Problem(self.line, self.column, message)

    @property
    def text(self) -> str | None:
        """The scalar's text as written, or None for a list or a mapping."""
        return self.value if isinstance(self.value, str) else None

    @property
    def items(self) -> list[Node] | None:
        """The list, or None."""
        return self.value if isinstance(self.value, list) else None

    @property
    def fields(self) -> dict[str, tuple[Node, Node]] | None:
        """The mapping from name to (key node, value node), or None."""
        return self.value if isinstance(self.value, dict) else None

    def get(self, name: str) -> Node | None:
        """The value under a name of a mapping, or None."""
        pair = (self.fields or {}).get(name)
        return pair[1] if pair else None


def _convert(node: yaml.Node, problems: list[Problem]) -> Node:
    line, column = node.start_mark.line + 1, node.start_mark.column + 1
    if isinstance(node, yaml.ScalarNode):
        return Node(line, column, str(node.value))
    if isinstance(node, yaml.SequenceNode):
        return Node(line, column, [_convert(item, problems) for item in node.value])
    fields: dict[str, tuple[Node, Node]] = {}
    for key_node, value_node in node.value:
        key = _convert(key_node, problems)
        if key.text is None:
            problems.append(key.problem("a name must be plain text"))
            continue
        if key.text in fields:
            problems.append(key.problem(f"{key.text!r} stands twice here; keep one"))
            continue
        fields[key.text] = (key, _convert(value_node, problems))
    return Node(line, column, fields)


def _unfit(text: str, loader: type) -> Iterator[Problem]:
    """What must be refused before composing, seen in the stream of events alone."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        mark = event.start_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        if isinstance(event, yaml.AliasEvent):
            # A few lines of them can stand for gigabytes.
            yield Problem(line, column, "aliases (*name) are not read; write the value out")
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                # Composing goes as deep as the text does; at some depth that ends the process.
                yield Problem(line, column, f"nested deeper than {_MAX_DEPTH} levels")
                return
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _composed(text: str) -> yaml.Node | None:
    """The document's nodes. Errors: DocumentError, yaml.YAMLError."""
    # The parser in C is eight times quicker, which a card of a thousand lines feels; what it
    # does not like is read again by the one in Python, whose word on it counts.
    for loader in (getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader):
        try:
            problems = list(_unfit(text, loader))
            if problems:
                raise DocumentError(problems)
            return yaml.compose(text, Loader=loader)
        except (yaml.YAMLError, UnicodeEncodeError):
            if loader is yaml.SafeLoader:
                raise
    raise AssertionError("the last loader answers or raises")


def parse_document(text: str) -> Node:
    """Read one YAML document. Errors: DocumentError with every problem's place."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_DOCUMENT_BYTES:
        raise DocumentError([Problem(1, 1, f"longer than {MAX_DOCUMENT_BYTES} bytes")])
    try:
        root = _composed(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise DocumentError([Problem(line, column, error.problem or "not YAML")]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise DocumentError([Problem(1, 1, f"not YAML: {str(error)[:200]}")]) from None
    if root is None:
        raise DocumentError([Problem(1, 1, "the document is empty")])
    problems: list[Problem] = []
    node = _convert(root, problems)
    if problems:
        raise DocumentError(problems)
    return node
