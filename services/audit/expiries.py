"""What was left of grants at their ends, worked out again from the logs.

Every reader applies `credit_expired` as it stands, up to the grant: it does not
keep what projects were charged when. The record says at which sizes of the logs
it was worked out, and here the logs are charged once more up to them, by the
minute, as the service does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from audit.balances import Books, Source
from audit.cuts import CutAt, Pin
from audit.findings import Finding
from kernel.placement import CONTROL_LOG
from pricing.domain import hours
from pricing.domain.credit import CreditState
from pricing.domain.credits import Charge, ends_of, settle, stretch_of
from pricing.domain.projection import Projection
from pricing.domain.replay import Replay
from pricing.domain.state import Effects, Use
from tollbook.pricing.v1.accounts_pb2 import CreditExpired

Aside = Callable[[bytes], bytes | None]


class Pool(NamedTuple):
    """A meter's month, whose cost is one sum; which minute of it pays how much is not in a log."""

    card_id: str
    meter: str
    period: str


_Part = tuple[int, str, Pool | None]
"""(minute, project, whose month decides the charge; None: it is the minute's own)"""


class Charged(Replay):
    """Books that also keep what the projects of some accounts were charged, minute by minute."""

    def __init__(self, accounts: frozenset[str]) -> None:
        super().__init__()
        self.projection = Projection(sums_use=True, judges=False)
        self._accounts = accounts
        self._pico: dict[str, dict[_Part, int]] = {}
        self._meters: dict[tuple[str, int, str], tuple[str, str] | None] = {}

    def _book(self, log: str, size: int, effects: Effects) -> None:
        super()._book(log, size, effects)
        for use, used in effects.used.items():
            # What a month charged nothing for here may have been charged for by other steps.
            if (used.amount_pico or used.charged) and use.account_id in self._accounts:
                sums = self._pico.setdefault(use.account_id, {})
                part = use.minute_us, use.project_id, self._pool(use)
                sums[part] = sums.get(part, 0) + used.amount_pico

    def _pool(self, use: Use) -> Pool | None:
        """The meter's month that decides what a use costs; None: its line has no meter."""
        asked = use.card_id, use.card_version, use.line_id
        if asked not in self._meters:
            card = self.projection.version(use.card_id, use.card_version).card
            line = next(line for line in card.lines if line.line_id == use.line_id)
            found = line.meter or line.line_id, card.timezone
            self._meters[asked] = found if line.is_metered else None
        metered = self._meters[asked]
        if metered is None:
            return None
        meter, zone = metered
        return Pool(use.card_id, meter, hours.local_time(zone, use.minute_us).period)

    def undecided(self, account_id: str) -> Pool | None:
        """A meter's month whose cost may fall on one or another stretch or project; None: none.

        A step of reading shares what it changed of a month's cost among its own uses. So the sum
        of a month is everybody's, and its parts are the reader's. Where all of it is of one project
        and lies between the same ends of grants, grants are paid from by the sum alone.
        """
        ends_us = ends_of(self.projection.control.credit.lots(account_id))
        places: dict[Pool, tuple[int, str]] = {}
        for minute_us, project_id, pool in self._pico.get(account_id, {}):
            if pool is not None:
                place = stretch_of(ends_us, minute_us), project_id
                if places.setdefault(pool, place) != place:
                    return pool
        return None

    def left_pico(self, account_id: str, grant_id: str) -> int:
        """What the account's charges so far left of a grant."""
        charges = [
            Charge(minute_us, project_id, amount_pico)
            for (minute_us, project_id, _), amount_pico in self._pico.get(account_id, {}).items()
        ]
        lots = self.projection.control.credit.lots(account_id)
        return settle(lots, charges).left[grant_id]


def check(
    credit: CreditState,
    sources: Mapping[str, Source],
    pins: Mapping[str, Sequence[Pin]],
    aside: Aside,
    cuts: Sequence[CutAt],
) -> tuple[list[Finding], list[str]]:
    """Findings of what the logs do not give, and notes on what cannot be worked out again."""
    findings: list[Finding] = []
    notes: list[str] = []
    said = [found for found in credit.expiries if found[1].control_size]
    if unsaid := len(credit.expiries) - len(said):
        notes.append(
            f"{unsaid} expired grants do not say by which entries they were worked out; what was"
            " left of them is taken as stated, up to the grant"
        )
    accounts = frozenset(made.account_id for _, made in said)
    charged = Charged(accounts)
    books: Books | None = None
    for position, made in sorted(said, key=lambda found: sorted(_sizes(found[1]).items())):
        short = _fewer_than_a_cut(made, cuts)
        if short is not None:
            findings.append(Finding(CONTROL_LOG, f"{_name(made)}: {short}", position))
            continue
        if books is None or not _follows(books, made):
            charged = Charged(accounts)
            books = Books(sources, pins, aside, charged)
        problems = list(books.advance(_sizes(made)))
        if problems:
            why = f"{_name(made)} cannot be worked out again: {problems[0]}"
            findings.append(Finding(CONTROL_LOG, why, position))
            books = None
            continue
        pool = charged.undecided(made.account_id)
        if pool is not None:
            notes.append(
                f"{_name(made)} is taken as stated, up to the grant: what meter {pool.meter!r} of"
                f" card {pool.card_id!r} charged for {pool.period} is of several projects, or of"
                " before and after the end of a grant, and how much of it each pays depends on the"
                " steps in which the service read"
            )
            continue
        findings += _compare(position, made, charged.left_pico(made.account_id, made.grant_id))
    return findings, notes


def _compare(position: int, made: CreditExpired, left_pico: int) -> Iterator[Finding]:
    stated_pico = int(made.amount.amount_pico)
    if stated_pico != left_pico:
        yield Finding(
            CONTROL_LOG,
            f"{_name(made)}: {stated_pico} pico were left of it by the record; the logs give"
            f" {left_pico}",
            position,
        )


def _name(made: CreditExpired) -> str:
    return f"expired grant {made.grant_id!r} of account {made.account_id!r}"


def _sizes(made: CreditExpired) -> dict[str, int]:
    return {CONTROL_LOG: made.control_size, **{part.log: part.size for part in made.logs}}


def _follows(books: Books, made: CreditExpired) -> bool:
    """Whether books can go on to these sizes and be at no log's entry beyond them."""
    sizes = _sizes(made)
    return all(size <= sizes.get(log, 0) for log, size in books.replay.sizes.items())


def _fewer_than_a_cut(made: CreditExpired, cuts: Sequence[CutAt]) -> str | None:
    """Why it was worked out by too little: what a cut of before had charged is missing, or None.

    Without this, a service could leave usage out and call more of a grant void than was left.
    """
    sizes = _sizes(made)
    for found in cuts:
        logs = found.logs
        if CONTROL_LOG not in logs or logs[CONTROL_LOG].size >= made.control_size:
            continue
        for log, part in logs.items():
            if part.size > sizes.get(log, 0):
                return (
                    f"it was worked out by {sizes.get(log, 0)} entries of {log}, and {found.place},"
                    f" which is older, had {part.size}"
                )
    return None
