"""Credit in lots: what of each grant is left, and who may still spend how much.

A lot is a grant with an order, an end and a project it is for. Which lots paid
is not remembered charge by charge: it is worked out from the sums of charges
by project and time, in one order for everybody. So it depends on what was
charged, never on the order in which the logs were read, and a late event
changes it to what it would have been.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

NEVER_US: Final = 2**63 - 1
"""End of a lot without an end."""


class Lot(NamedTuple):
    """A grant as payments are taken from it."""

    priority: int
    expires_us: int
    position: int
    grant_id: str
    project_id: str
    amount_pico: int

    @property
    def order(self) -> tuple[int, int, bool, int]:
        """Lower numbers first, then what ends sooner, then what is for a project, then older."""
        return self.priority, self.expires_us, not self.project_id, self.position


class Charge(NamedTuple):
    """What a project was charged for events between two ends of lots, `at_us` among them."""

    at_us: int
    project_id: str
    amount_pico: int


class Outcome(NamedTuple):
    """What is left of each lot, and what no lot paid."""

    left: dict[str, int]
    """By grant_id, in pico-units."""
    unpaid_pico: int


def settle(lots: Sequence[Lot], charges: Iterable[Charge]) -> Outcome:
    """Pay charges from lots: charges in order of stretch and project, lots in their own order.

    A stretch lies between two ends of lots; what a project was charged in it
    is one sum, whatever instants of it the charges carry. It is paid by lots
    that had not ended by then and are for its project or for all.
    """
    ordered = sorted(lots, key=lambda lot: lot.order)
    left = {lot.grant_id: lot.amount_pico for lot in ordered}
    unpaid_pico = 0
    for (ended, project_id), amount_pico in sorted(_stretches(lots, charges).items()):
        due_pico = max(0, amount_pico)
        for lot in ordered:
            if due_pico == 0:
                break
            if lot.expires_us > ended and lot.project_id in ("", project_id):
                paid_pico = min(due_pico, left[lot.grant_id])
                left[lot.grant_id] -= paid_pico
                due_pico -= paid_pico
        unpaid_pico += due_pico
    return Outcome(left, unpaid_pico)


def ends_of(lots: Iterable[Lot]) -> list[int]:
    """The ends of lots, in order, each once."""
    return sorted({lot.expires_us for lot in lots})


def stretch_of(ends_us: Sequence[int], at_us: int) -> int:
    """The last end of a lot before an instant, or at it; 0: none. Charges between are one sum."""
    ended = bisect_right(ends_us, at_us)
    return ends_us[ended - 1] if ended else 0


def _stretches(lots: Iterable[Lot], charges: Iterable[Charge]) -> dict[tuple[int, str], int]:
    """Sums of charges by stretch and project."""
    ends_us = ends_of(lots)
    sums: dict[tuple[int, str], int] = {}
    for charge in charges:
        key = stretch_of(ends_us, charge.at_us), charge.project_id
        sums[key] = sums.get(key, 0) + charge.amount_pico
    return sums


def locked_pico(lots: Sequence[Lot], outcome: Outcome, project_id: str, at_us: int) -> int:
    """What of the lots' rest a project cannot spend at an instant: it ended, or is another's."""
    return sum(
        outcome.left[lot.grant_id]
        for lot in lots
        if at_us >= lot.expires_us or lot.project_id not in ("", project_id)
    )
