"""Outcome policy: which of a leaf's counts is charged for the way a request ended.

A card states a rule for each outcome; what it leaves out has the rule below.
"""

from __future__ import annotations

from typing import Final

GENERATED: Final = "generated"
DELIVERED: Final = "delivered"
NONE: Final = "none"
RULES: Final = (GENERATED, DELIVERED, NONE)

DEFAULT_OUTCOMES: Final[dict[str, str]] = {
    # What the engine did on the caller's word is charged, also when the caller
    # left before the end: the work was done for them.
    "complete": GENERATED,
    "empty": GENERATED,
    "client_abort": GENERATED,
    "deadline": GENERATED,
    "safety_stop": GENERATED,
    # A failure of ours is not the caller's to pay: what reached them is charged,
    # and nothing where nothing could.
    "error_before_first_token": NONE,
    "error_mid_stream": DELIVERED,
    "engine_lost": DELIVERED,
}


def charged_quantity(amount: int, undelivered: int, rule: str) -> int:
    """How many of a leaf's units a rule charges; linear, so it holds for sums of leaves too."""
    if rule == GENERATED:
        return amount
    if rule == DELIVERED:
        return amount - undelivered
    return 0
