"""The table of cases.py: each request costs what the provider's page says, to the last digit."""

from __future__ import annotations

import ast
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
from tests.unit.pricing.published.cases import CASES, Case
from tests.unit.pricing.published.rated import amount_pico, catalogue, rate

from pricing.domain.catalogue import Catalogue

CARDS = Path(__file__).parent / "cards"
PICO = 10**12


@cache
def card(name: str) -> Catalogue:
    return catalogue((CARDS / name).read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}: {case.name}")
def test_costs_what_the_page_says(case: Case) -> None:
    at = datetime.fromisoformat(case.at)
    delta = at - datetime(1970, 1, 1, tzinfo=UTC)
    at_us = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    rated = rate(card(case.card), case.dialect, case.usage, case.model, case.tier, at_us)
    assert Fraction(amount_pico(rated), PICO) == Fraction(case.expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}: {case.name}")
def test_the_paper_agrees_with_itself(case: Case) -> None:
    """The arithmetic that is written down gives the figure that is written down."""
    assert paper(case.working) / 10**6 == Fraction(case.expected)


def test_there_are_enough_cases_and_each_has_its_source() -> None:
    assert len(CASES) >= 60
    assert len({(case.card, case.model, case.name) for case in CASES}) == len(CASES)
    for file in {case.card for case in CASES}:
        head = (CARDS / file).read_text().partition("\ncard:")[0]
        assert head.startswith("# Source")
        assert "/" in head
    assert {case.card for case in CASES} == {file.name for file in CARDS.iterdir()}


def paper(working: str) -> Fraction:
    """Add and multiply decimals as they are written, exactly."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            apply: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
                ast.Add: lambda one, other: one + other,
                ast.Mult: lambda one, other: one * other,
            }
            return apply[type(node.op)](value(node.left), value(node.right))
        text = ast.get_source_segment(working, node)
        assert isinstance(node, ast.Constant)
        assert text is not None
        return Fraction(text)

    return value(ast.parse(working, mode="eval").body)
