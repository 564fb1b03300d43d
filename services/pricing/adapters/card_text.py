"""A card's YAML as a request brings it: read, or refused with the place of every problem."""

from __future__ import annotations

from typing import Final

from kernel import errors
from pricing.domain.card import Card
from pricing.domain.card_yaml import parse_card
from pricing.domain.document import DocumentError

_MAX_DOCUMENT_BYTES: Final = 900_000
_MAX_PROBLEMS: Final = 100


def card_in(yaml: str) -> Card:
    """The card. Errors: InvalidArgument with a violation `line L, column C` for each problem."""
    try:
        card = parse_card(yaml)
    except DocumentError as error:
        first, more = error.problems[0], len(error.problems) - 1
        raise errors.InvalidArgument(
            f"the rate card cannot be used: {first}" + (f" (and {more} more)" if more else ""),
            reason="INVALID_RATE_CARD",
            violations=tuple(
                errors.FieldViolation(
                    f"line {problem.line}, column {problem.column}", problem.message
                )
                for problem in error.problems[:_MAX_PROBLEMS]
            ),
        ) from None
    if len(card.document()) > _MAX_DOCUMENT_BYTES:
        raise errors.InvalidArgument(
            f"the card's document is over {_MAX_DOCUMENT_BYTES} bytes; split the card",
            reason="INVALID_RATE_CARD",
        )
    return card
