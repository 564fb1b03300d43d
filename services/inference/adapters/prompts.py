"""What every engine asks of a prompt, and how one is refused."""

from __future__ import annotations

from collections.abc import Sequence

from kernel import errors


def length_problem(token_ids: Sequence[int], context_tokens: int) -> str:
    """What is wrong with a prompt's length; empty when nothing is."""
    if not token_ids:
        return "the prompt has no token"
    if len(token_ids) >= context_tokens:
        return (
            f"the prompt has {len(token_ids)} tokens; the model's context of {context_tokens} must"
            " hold them and at least one token of output"
        )
    return ""


def invalid(field: str, problem: str) -> errors.InvalidArgument:
    """The error of a prompt that cannot be run."""
    return _refused(field, problem, reason="INVALID_PROMPT")


def unrenderable(field: str, problem: str) -> errors.InvalidArgument:
    """The error of a conversation that makes no prompt."""
    return _refused(field, problem, reason="UNRENDERABLE_PROMPT")


def _refused(field: str, problem: str, reason: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        problem, reason=reason, violations=(errors.FieldViolation(field, problem),)
    )
