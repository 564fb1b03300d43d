"""Credit in lots: what of each grant is left, and who may still spend how much.

A lot is a grant with an order, an end and a project it is for. Which lots paid
is not remembered charge by charge: it is worked out from the sums of charges
by project and time, in one order for everybody. So it depends on what was
charged, never on the order in which the logs were read, and a late event
changes it to what it would have been.
"""

from __future__ import annotations

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
    """What a project was charged for events from `from_us` up to the next edge of a lot."""

    from_us: int
    project_id: str
    amount_pico: int


class Outcome(NamedTuple):
    """What is left of each lot, and what no lot paid."""

    left: dict[str, int]
    """By grant_id, in pico-units."""
    unpaid_pico: int


def edges_us(lots: Iterable[Lot]) -> list[int]:
    """The instants, in order, at which some lot ends."""
    return sorted({lot.expires_us for lot in lots if lot.expires_us != NEVER_US})


def settle(lots: Sequence[Lot], charges: Iterable[Charge]) -> Outcome:
    """Pay charges from lots: charges in order of time and project, lots in their own order.

    A charge is paid by lots that had not ended at its time and are for its
    project or for all. Charges of one stretch between two edges must carry an
    instant of that stretch.
    """
    ordered = sorted(lots, key=lambda lot: lot.order)
    left = {lot.grant_id: lot.amount_pico for lot in ordered}
    unpaid_pico = 0
    for charge in sorted(charges):
        due_pico = charge.amount_pico
        for lot in ordered:
            if due_pico == 0:
                break
            if charge.from_us < lot.expires_us and lot.project_id in ("", charge.project_id):
                paid_pico = min(due_pico, left[lot.grant_id])
                left[lot.grant_id] -= paid_pico
                due_pico -= paid_pico
        unpaid_pico += due_pico
    return Outcome(left, unpaid_pico)


def locked_pico(lots: Sequence[Lot], outcome: Outcome, project_id: str, at_us: int) -> int:
    """What of the lots' rest a project cannot spend at an instant: it ended, or is another's."""
    return sum(
        outcome.left[lot.grant_id]
        for lot in lots
        if at_us >= lot.expires_us or lot.project_id not in ("", project_id)
    )
