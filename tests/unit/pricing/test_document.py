"""Reading YAML quickly changes neither what is read nor what is said of it."""

from __future__ import annotations

import time

import pytest
import yaml

from pricing.domain.document import DocumentError, Node, parse_document


@pytest.mark.parametrize("text", ["[" * 800_000, "{a: " * 200_000, "- " * 400_000, "? " * 400_000])
def test_depth_without_end_is_refused_and_takes_no_time_and_no_process(text: str) -> None:
    started = time.process_time()
    with pytest.raises(DocumentError, match="nested deeper than 16 levels"):
        parse_document(text)
    assert time.process_time() - started < 2


BROKEN = ["\t", "a: b: c", "card: [", 'a: "\\x', "\x00", "x\ud800", "%YAML 9", "a: 1\n---\nb: 2"]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_said_of_broken_text_is_the_readable_parsers_word(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DocumentError) as quick:
        parse_document(text)
    monkeypatch.delattr(yaml, "CSafeLoader")
    with pytest.raises(DocumentError) as plain:
        parse_document(text)
    assert quick.value.problems == plain.value.problems


def places(node: Node) -> object:
    """A node as plain values with their places."""
    here = (node.line, node.column)
    if node.items is not None:
        return here, [places(item) for item in node.items]
    if node.fields is not None:
        return here, [(places(key), places(value)) for key, value in node.fields.values()]
    return here, node.text


def test_both_parsers_read_the_same_with_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """# A card.
card: ä-1
lines:
  - {id: "in", match: {model: 'm''s', direction: in}, per: 1_000_000, price: 0.15}   # cheap
  - id: out
    note: >-
      folded
      text
    price: "0.60"
  - []
  - ~
"""
    quick = places(parse_document(text))
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert places(parse_document(text)) == quick
