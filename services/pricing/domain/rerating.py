"""Rating again what a wrong price charged: plans, and the corrections that they post. Pure.

A plan names a card, a stretch of event time, a control size at which the
card's prices are right, and how far each usage log is rated again. What it
comes to is a pure function of the logs up to there, so its batches are known
by their digests before one is posted, and a batch that is not as planned is
refused by every reader. The charges that were wrong stay; a correction is a
double entry of its own, linked to them by log, positions, card and line.

Charges that a plan finds are those of the pins, as corrected by the
re-ratings that were posted before: so of two re-ratings of the same events
the second corrects what the first left, and none is ever applied twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kernel.clock import us_of
from kernel.placement import CONTROL_LOG, partition_of_log
from pricing.domain import books, card_rules
from pricing.domain.catalogue import PublishedCard
from pricing.domain.operators import APPROVER, AUTHOR, Operators
from pricing.domain.state import Account
from tollbook.pricing.v1 import card_records_pb2 as records

BATCH_CORRECTIONS: Final = 100
MAX_CORRECTION_PICO: Final = 10**36
MAX_BATCHES: Final = 10_000
MAX_PLANS: Final = 100_000
_RERATE_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_AMOUNT: Final = re.compile(r"-?[1-9][0-9]{0,38}")


def batches(corrections: Sequence[records.Correction]) -> list[list[records.Correction]]:
    """Corrections as they are posted, in their order."""
    return [
        list(corrections[start : start + BATCH_CORRECTIONS])
        for start in range(0, len(corrections), BATCH_CORRECTIONS)
    ]


def batch_digest(corrections: Iterable[records.Correction]) -> bytes:
    """SHA-256 (32 bytes) over a batch: each correction's fields as text, a line each."""
    digest = hashlib.sha256(b"tollbook-corrections-v1\n")
    for made in corrections:
        fields = (
            made.log,
            made.from_position,
            made.to_position,
            made.account_id,
            made.card_id,
            made.version,
            made.content_hash.hex(),
            made.line_id,
            made.quantity,
            made.amount.currency,
            made.amount.amount_pico,
        )
        digest.update(("\t".join(str(field) for field in fields) + "\n").encode())
    return digest.digest()


def replaced(
    entries: Sequence[PublishedCard],
    card_id: str,
    right: Sequence[PublishedCard],
    from_us: int,
    to_us: int,
) -> list[PublishedCard]:
    """A catalogue's entries with those of one card, within [from, to), taken from another's."""
    answer = [entry for entry in entries if entry.card.card_id != card_id]
    for entry in entries:
        if entry.card.card_id == card_id:
            answer += _clipped(entry, 0, from_us)
            answer += _clipped(entry, to_us, None)
    for entry in right:
        if entry.card.card_id == card_id:
            answer += _clipped(entry, from_us, to_us)
    return answer


def _clipped(entry: PublishedCard, from_us: int, to_us: int | None) -> list[PublishedCard]:
    card = entry.card
    starts_us = max(card.effective_from_us, from_us)
    ends = [end for end in (card.effective_to_us, to_us) if end is not None]
    ends_us = min(ends) if ends else None
    if ends_us is not None and ends_us <= starts_us:
        return []
    return [
        entry._replace(card=replace(card, effective_from_us=starts_us, effective_to_us=ends_us))
    ]


@dataclass
class Plan:
    """A re-rating and how far it is posted."""

    position: int
    made: records.ReratePlanned
    next_batch: int = 0
    posted_position: int | None = None
    """Position of its last batch; None while it is not posted whole."""

    @property
    def from_us(self) -> int:
        """First instant of the events it is about."""
        return us_of(self.made.event_from)

    @property
    def to_us(self) -> int:
        """First instant after them."""
        return us_of(self.made.event_to)

    def covers(self, log: str, position: int, event_time_us: int) -> bool:
        """Whether it rates an event again."""
        return self.from_us <= event_time_us < self.to_us and any(
            part.log == log and position < part.size for part in self.made.logs
        )


class Reratings:
    """All re-ratings at a size of the control log."""

    def __init__(self, operators: Operators) -> None:
        self._operators = operators
        self.plans: dict[str, Plan] = {}
        self.posted: list[Plan] = []
        """Those posted whole, in order."""
        self.open: Plan | None = None
        """The one that is posted in part."""
        self._begun_position = -1

    def plan(self, position: int, made: records.ReratePlanned) -> str | None:
        """Apply a plan; give why it is refused, or None."""
        name = f"re-rating {made.rerate_id[:70]!r}"
        if not _RERATE_ID.fullmatch(made.rerate_id) or not card_rules.CARD_ID.fullmatch(
            made.card_id
        ):
            return f"{name}: it has no id, or names no card"
        if made.rerate_id in self.plans or len(self.plans) >= MAX_PLANS:
            return f"{name} exists, or there are {MAX_PLANS}"
        if self._operators and not self._operators.may(made.planner, AUTHOR):
            return f"{name}: {made.planner[:70]!r} is no author"
        if not 0 <= us_of(made.event_from) < us_of(made.event_to) <= card_rules.MAX_INSTANT_US:
            return f"{name}: its last instant is not after its first"
        if not 1 <= made.control_size <= position:
            return f"{name}: control size {made.control_size} is beyond its own position"
        if any(partition_of_log(part.log) is None for part in made.logs):
            return f"{name}: it names a log that is no usage log"
        if -(-made.corrections // BATCH_CORRECTIONS) != len(made.batch_digests):
            return f"{name}: it has not a digest for each batch"
        self.plans[made.rerate_id] = Plan(position, made)
        return None

    def batch_problem(self, made: records.CorrectionsPosted) -> str | None:
        """Why a batch cannot be posted next, or None."""
        name = f"re-rating {made.rerate_id[:70]!r} batch {made.batch}"
        plan = self.plans.get(made.rerate_id)
        if plan is None:
            return f"{name}: it was never planned"
        if self.open not in (None, plan):
            return f"{name}: another re-rating is half posted"
        if made.batch != plan.next_batch or made.batch >= len(plan.made.batch_digests):
            return f"{name}: batch {plan.next_batch} of {len(plan.made.batch_digests)} is next"
        if made.batch == 0 and self._begun_position >= plan.made.control_size:
            return f"{name}: another was posted after it was planned; plan it again"
        if self._operators:
            if not self._operators.may(made.approver, APPROVER):
                return f"{name}: {made.approver[:70]!r} is no approver"
            if made.approver == plan.made.planner:
                return f"{name}: its planner may not post it"
        if batch_digest(made.corrections) != plan.made.batch_digests[made.batch]:
            return f"{name}: it is not what was planned"
        return None

    def post(self, position: int, made: records.CorrectionsPosted) -> None:
        """Count a batch that has no problem."""
        plan = self.plans[made.rerate_id]
        if made.batch == 0:
            self._begun_position = position
        plan.next_batch += 1
        self.open = plan
        if plan.next_batch == len(plan.made.batch_digests):
            self.open = None
            plan.posted_position = position
            self.posted.append(plan)

    def posted_before(self, control_size: int) -> list[Plan]:
        """Those posted whole below a control size, in order."""
        return [
            plan
            for plan in self.posted
            if plan.posted_position is not None and plan.posted_position < control_size
        ]


def posting_of(
    position: int, made: records.Correction, account: Account | None
) -> books.Posting | str:
    """The double entry of a correction, or why there is none."""
    if account is None or account.currency != made.amount.currency:
        return f"no account {made.account_id[:70]!r} in {made.amount.currency[:8]!r}"
    if not _AMOUNT.fullmatch(made.amount.amount_pico):
        return "a correction's amount is a whole number other than 0"
    amount_pico = int(made.amount.amount_pico)
    if abs(amount_pico) > MAX_CORRECTION_PICO:
        return "a correction's amount is beyond all charges"
    if made.log == CONTROL_LOG or not 0 <= made.from_position < made.to_position:
        return "a correction names the charges it corrects"
    customer, revenue = books.customer(made.account_id), books.revenue(made.account_id)
    debit, credit = (customer, revenue) if amount_pico > 0 else (revenue, customer)
    return books.Posting(
        kind=books.CORRECTION,
        debit=debit,
        credit=credit,
        currency=account.currency,
        amount_pico=abs(amount_pico),
        log=made.log,
        from_position=made.from_position,
        to_position=made.to_position,
        card_id=made.card_id,
        card_version=made.version,
        card_hash=made.content_hash,
        line_id=made.line_id,
        quantity=made.quantity,
        control_position=position,
    )
