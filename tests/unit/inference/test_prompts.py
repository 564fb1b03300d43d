"""What every engine asks of a prompt's length: room for one token of output."""

from __future__ import annotations

import pytest

from inference.adapters.prompts import invalid, length_problem


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        (0, "the prompt has no token"),
        (1, ""),
        (7, ""),
        (
            8,
            "the prompt has 8 tokens; the model's context of 8 must hold them and at least one"
            " token of output",
        ),
    ],
)
def test_a_prompt_leaves_room_for_an_answer(tokens: int, problem: str) -> None:
    assert length_problem([0] * tokens, 8) == problem


def test_a_refusal_names_its_field() -> None:
    error = invalid("spec.chat", "wrong")
    assert (error.message, error.reason) == ("wrong", "INVALID_PROMPT")
    assert [(one.field, one.description) for one in error.violations] == [("spec.chat", "wrong")]
