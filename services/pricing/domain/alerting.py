"""When an alert fires: on sums of windows, and on levels that are crossed. Pure.

A window's alert is of (rule, account, window) and fires once for it, whenever
its sum first comes that far. A level's alert fires when the level is crossed
and again only after it was on the good side; so it is of (rule, account,
number of the crossing).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

SPIKE_BASE: Final = 24
"""How many windows before a window its spending is compared with."""


class Level(NamedTuple):
    """What is remembered of a level: on which side it is, and how often it was crossed."""

    is_over: bool
    """Whether it is on the bad side; an account that never was on the good one is, too."""
    crossings: int


NEW: Final = Level(True, 0)
"""Of an account that nothing is known of: it has to be well before it can fall."""


def crossed(before: Level, is_over: bool) -> tuple[Level, bool]:
    """The level after a look, and whether an alert fires."""
    if is_over == before.is_over:
        return before, False
    if is_over:
        return Level(True, before.crossings + 1), True
    return Level(False, before.crossings), False


def is_fast(spendable_pico: int, spent_this_hour_pico: int, hours: int) -> bool:
    """Whether credit does not last for so many hours at what this hour has cost so far."""
    return spent_this_hour_pico > 0 and spendable_pico < spent_this_hour_pico * hours


def is_spike(spent_pico: int, earlier_pico: Sequence[int], times: int, least_pico: int) -> bool:
    """Whether a window's spending is so many times the mean of the SPIKE_BASE windows before it.

    Of those that are not given nothing was spent. Where nothing was spent in any there is
    nothing to compare with.
    """
    base_pico = sum(earlier_pico)
    enough = spent_pico >= least_pico and spent_pico * SPIKE_BASE >= times * base_pico
    return base_pico > 0 and enough


def alert_id(rule_id: str, account_id: str, of: str) -> str:
    """An alert's id, by which a receiver knows it again: the same for the same crossing."""
    text = "\n".join((rule_id, account_id, of))
    return f"alert_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
