"""How a request ended, from what stopped it and what it had by then."""

from __future__ import annotations

from enum import Enum
from typing import Final

from tollbook.usage.v1 import usage_pb2 as usage


class End(Enum):
    """What stopped a request."""

    ENGINE_FINISHED = "engine finished"
    CALLER_LEFT = "caller left"
    DEADLINE = "deadline"
    ENGINE_FAILED = "engine failed"
    ENGINE_LOST = "engine lost"
    DRAINED = "cut off by a shutdown"


# Ends that are the service's fault and not its caller's.
OURS: Final = frozenset({End.ENGINE_FAILED, End.ENGINE_LOST, End.DRAINED})


def outcome_of(end: End, made_tokens: int) -> int:
    """The usage.Outcome, of tokens generated or embedded; a function of both alone, so that a
    restart decides alike.
    """
    match end:
        case End.ENGINE_FINISHED:
            return usage.OUTCOME_COMPLETE if made_tokens else usage.OUTCOME_EMPTY
        case End.CALLER_LEFT:
            return usage.OUTCOME_CLIENT_ABORT
        case End.DEADLINE:
            return usage.OUTCOME_DEADLINE
        case End.ENGINE_LOST:
            return usage.OUTCOME_ENGINE_LOST
        case End.ENGINE_FAILED | End.DRAINED:
            return (
                usage.OUTCOME_ERROR_MID_STREAM
                if made_tokens
                else usage.OUTCOME_ERROR_BEFORE_FIRST_TOKEN
            )


# What engines call a choice's end: vLLM's words, which servers of OpenAI's kind share.
FINISH_REASONS: Final = {
    "stop": usage.FINISH_REASON_STOP,
    "length": usage.FINISH_REASON_LENGTH,
    "abort": usage.FINISH_REASON_ABORT,
    "error": usage.FINISH_REASON_ERROR,
    "repetition": usage.FINISH_REASON_REPETITION,
}

# The worst reason of several choices speaks for the request.
_WORST_FIRST: Final = (
    usage.FINISH_REASON_ERROR,
    usage.FINISH_REASON_ABORT,
    usage.FINISH_REASON_REPETITION,
    usage.FINISH_REASON_LENGTH,
    usage.FINISH_REASON_STOP,
)


def finish_reason_of(reasons: list[int]) -> int:
    """One usage.FinishReason for all choices of a request."""
    for reason in _WORST_FIRST:
        if reason in reasons:
            return reason
    return usage.FINISH_REASON_UNSPECIFIED
