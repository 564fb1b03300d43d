"""Admission: who may hold how much, given what an account has, owes and keeps already.

Pure: one standing in, decisions out. A standing is what one snapshot says of
an account; as holds are made in it, it changes with them, so that several in
one batch are decided one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kernel.money import format_pico
from pricing.domain.credits import Charge, Lot, locked_pico, settle
from pricing.domain.identity import identity_of
from pricing.domain.state import Limit
from pricing.domain.windows import window_start_us

DEFAULT_TTL_MS: Final = 60_000
MAX_HOLD_PICO: Final = 10**30


def hold_id_of(account_id: str, event_id: str) -> str:
    """The id of the one hold that an event can have: 32 hexadecimal digits."""
    return identity_of(account_id, event_id).hex()


class Ask(NamedTuple):
    """A hold that is asked for. Its event's own time says into what windows it falls."""

    hold_id: str
    account_id: str
    project_id: str
    key_id: str
    amount_pico: int
    event_time_us: int


class Refusal(NamedTuple):
    """A limit in the way: whose it is, and what it says."""

    subject: str
    description: str


class Held(NamedTuple):
    """What a project holds with a key, for events of an instant."""

    project_id: str
    key_id: str
    event_time_us: int
    amount_pico: int


@dataclass(slots=True)
class Standing:
    """An account as one snapshot shows it. `lots` and `charges` are empty where all its credit
    is for everybody and never ends: then they change nothing.
    """

    account_id: str
    currency: str
    balance_pico: int
    held_pico: int
    credit_limit_pico: int
    limits: Sequence[Limit] = ()
    spent: dict[tuple[str, int], int] = field(default_factory=dict)
    """What is charged, by limit_id and start of the window."""
    holds: list[Held] = field(default_factory=list)
    """The open holds, where there are limits or lots; else left out."""
    lots: Sequence[Lot] = ()
    charges: Sequence[Charge] = ()

    def spendable_pico(self, project_id: str, at_us: int) -> int:
        """What a project may still hold at an instant, by the account's credit alone."""
        free_pico = self.balance_pico - self.held_pico + self.credit_limit_pico
        if not self.lots:
            return free_pico
        pending = [
            Charge(hold.event_time_us, hold.project_id, hold.amount_pico) for hold in self.holds
        ]
        outcome = settle(self.lots, [*self.charges, *pending])
        return free_pico - locked_pico(self.lots, outcome, project_id, at_us)

    def used_pico(self, limit: Limit, start_us: int) -> int:
        """What is spent and held in a window of a limit."""
        held_pico = sum(
            hold.amount_pico
            for hold in self.holds
            if limit.covers(hold.project_id, hold.key_id)
            and window_start_us(limit.window, limit.time_zone, hold.event_time_us) == start_us
        )
        return self.spent.get((limit.limit_id, start_us), 0) + held_pico

    def refusals(self, ask: Ask, more_pico: int) -> list[Refusal]:
        """The limits that are in the way of holding `more_pico` for a request; none: it may.

        What costs nothing is in nobody's way, also where more is spent than there was.
        """
        found: list[Refusal] = []
        if more_pico == 0:
            return found
        spendable_pico = self.spendable_pico(ask.project_id, ask.event_time_us)
        if more_pico > spendable_pico:
            found.append(
                Refusal(
                    f"account:{self.account_id}",
                    f"{format_pico(max(0, spendable_pico))} {self.currency} of credit is left for"
                    f" this, the request may cost {format_pico(more_pico)}: add credit",
                )
            )
        for limit in self.limits:
            if limit.amount_pico is None or not limit.covers(ask.project_id, ask.key_id):
                continue
            start_us = window_start_us(limit.window, limit.time_zone, ask.event_time_us)
            used_pico = self.used_pico(limit, start_us)
            if used_pico + more_pico > limit.amount_pico:
                found.append(
                    Refusal(
                        f"limit:{limit.limit_id}",
                        f"{format_pico(limit.amount_pico)} {self.currency} in each {limit.window}"
                        f" ({limit.time_zone}), of which {format_pico(used_pico)} is spent or held",
                    )
                )
        return found

    def hold(self, ask: Ask, more_pico: int) -> None:
        """Count a hold that is made, or one that grows by so much."""
        self.held_pico += more_pico
        if self.limits or self.lots:
            self.holds.append(Held(ask.project_id, ask.key_id, ask.event_time_us, more_pico))
