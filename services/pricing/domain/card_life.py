"""A rate card's life by the control log: proposed, approved, retired. Pure.

A version prices nothing before it is approved. What its approval and its
retirement change is known to events that are pinned after them, and to no
other; so both are new entries of the catalogue's list, at their positions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from kernel.clock import us_of
from pricing.domain import card_rules
from pricing.domain.card import Card, content_hash, read_document
from pricing.domain.catalogue import PublishedCard, published_card
from pricing.domain.operators import APPROVER, AUTHOR, Operators
from tollbook.pricing.v1 import card_records_pb2 as records
from tollbook.pricing.v1 import control_pb2 as control
from tollbook.pricing.v1.cards_pb2 import RateCardStatus

PROPOSED: Final = "proposed"
APPROVED: Final = "approved"
PUBLISHED: Final = "published"
RETIRED: Final = "retired"

_OVERTAKEN: Final = (
    "another card came into force, or ended, after it was looked at whether one ties with it;"
    " ask again"
)

VersionKey = tuple[str, int]
"""(card id, version)"""


class Step(NamedTuple):
    """A record of the control log about a version."""

    what: str
    position: int
    actor: str
    reason: str


@dataclass
class Version:
    """A version of a card and what was said of it so far."""

    card: Card
    version: int
    content_hash: bytes
    supersedes: int
    author: str
    steps: list[Step] = field(default_factory=list)
    entries: list[PublishedCard] = field(default_factory=list)
    """What it was in the catalogue, the newest last; empty: it never priced anything."""

    @property
    def is_over(self) -> bool:
        """Whether a record ended it."""
        return self.steps[-1].what == RETIRED

    @property
    def approver(self) -> str:
        """Who put it in force, or empty."""
        return next((step.actor for step in self.steps if step.what in (APPROVED, PUBLISHED)), "")

    def at(self, control_size: int) -> tuple[list[Step], PublishedCard | None]:
        """Its steps and what it is in the catalogue, as known at a control size."""
        steps = [step for step in self.steps if step.position < control_size]
        known = bisect_left([entry.position for entry in self.entries], control_size)
        return steps, self.entries[known - 1] if known else None


def card_of(made: control.RateCardPublished) -> Card:
    """The card that a record publishes. Errors: ValueError with what is wrong."""
    card = _card_in(made.document, made.content_hash, made.card_id, made.version)
    ends_us = us_of(made.effective_to) if made.HasField("effective_to") else None
    if (us_of(made.effective_from), ends_us) != (card.effective_from_us, card.effective_to_us):
        raise ValueError("its instants are not those of the document")
    return card


def _card_in(document: bytes, digest: bytes, card_id: str, version: int) -> Card:
    if content_hash(document) != digest:
        raise ValueError("the document is not what its hash says")
    card = card_rules.check(read_document(document))
    if card.card_id != card_id:
        raise ValueError(f"the document is of card {card.card_id!r}")
    if version < 1:
        raise ValueError("versions are counted from 1")
    return card


class CardLife:
    """All versions of all cards at a size of the control log."""

    def __init__(self, operators: Operators) -> None:
        self._operators = operators
        self.versions: dict[VersionKey, Version] = {}
        self._newest: dict[str, int] = {}
        self._newest_approved: dict[str, int] = {}
        self._entries: list[PublishedCard] = []
        self._positions: list[int] = []

    def newest_version(self, card_id: str) -> int:
        """The newest version of a card, whatever became of it, or 0."""
        return self._newest.get(card_id, 0)

    def newest_approved(self, card_id: str) -> int:
        """The newest version of a card that ever was in force, or 0."""
        return self._newest_approved.get(card_id, 0)

    def of_card(self, card_id: str) -> Iterator[Version]:
        """All versions of a card, the oldest first."""
        for number in range(1, self.newest_version(card_id) + 1):
            if version := self.versions.get((card_id, number)):
                yield version

    def entries(self, control_size: int) -> tuple[PublishedCard, ...]:
        """What the catalogue holds at a control size: each version once, as it is known then."""
        known: dict[VersionKey, PublishedCard] = {}
        for entry in self._entries[: self.changes(control_size)]:
            # The place of its approval, with the instants of its last change.
            known[entry.card.card_id, entry.version] = entry
        return tuple(known.values())

    def changes(self, control_size: int) -> int:
        """How often the catalogue had changed at a control size."""
        return bisect_left(self._positions, control_size)

    def overtaken(self, card: Card, control_size: int) -> bool:
        """Whether a card that may meet this one came, or ended, from a control size on.

        Then what was seen at that size, that no other card ties with it, may be so no longer.
        """
        return any(
            entry.card.card_id != card.card_id and entry.card.is_beside(card)
            for entry in self._entries[self.changes(control_size) :]
        )

    def _put(self, version: Version, entry: PublishedCard) -> None:
        version.entries.append(entry)
        self._entries.append(entry)
        self._positions.append(entry.position)

    def publish(
        self, position: int, made: control.RateCardPublished
    ) -> tuple[str | None, list[PublishedCard]]:
        """Apply a publication in one step. Gives (why it is refused or None, new entries)."""
        if self._operators:
            return "this house has operators: a card is proposed by one, approved by another", []
        try:
            card = card_of(made)
        except ValueError as error:
            return f"card {made.card_id[:70]!r}: {error}", []
        if made.version <= self.newest_version(card.card_id):
            return f"card {card.card_id!r}: version {made.version} is not new", []
        if made.HasField("control_size") and self.overtaken(card, made.control_size):
            return f"card {card.card_id!r} version {made.version}: {_OVERTAKEN}", []
        version = Version(
            card,
            made.version,
            made.content_hash,
            self.newest_approved(card.card_id),
            made.author,
            [Step(PUBLISHED, position, made.approver or made.author, made.reason)],
        )
        self.versions[card.card_id, made.version] = version
        self._newest[card.card_id] = self._newest_approved[card.card_id] = made.version
        entry = published_card(position, card, made.version, made.content_hash)
        self._put(version, entry)
        return None, [entry]

    def propose(self, position: int, made: records.RateCardProposed) -> str | None:
        """Apply a proposal; give why it is refused, or None."""
        if not self._operators.may(made.author, AUTHOR):
            return f"card {made.card_id[:70]!r}: {made.author[:70]!r} is no author"
        try:
            card = _card_in(made.document, made.content_hash, made.card_id, made.version)
        except ValueError as error:
            return f"card {made.card_id[:70]!r}: {error}"
        if made.version <= self.newest_version(card.card_id):
            return f"card {card.card_id!r}: version {made.version} is not new"
        self.versions[card.card_id, made.version] = Version(
            card,
            made.version,
            made.content_hash,
            made.supersedes,
            made.author,
            [Step(PROPOSED, position, made.author, made.reason)],
        )
        self._newest[card.card_id] = made.version
        return None

    def approval_problem(self, made: records.RateCardApproved) -> str | None:
        """Why a version cannot be approved like this, or None."""
        name = f"card {made.card_id[:70]!r} version {made.version}"
        version = self.versions.get((made.card_id, made.version))
        if version is None:
            return f"{name} was never proposed"
        if version.content_hash != made.content_hash:
            return f"{name} has another content than the one that was read"
        if version.entries:
            return f"{name} was approved before"
        if version.is_over:
            return f"{name} was retired; propose it again"
        if not self._operators.may(made.approver, APPROVER):
            return f"{name}: {made.approver[:70]!r} is no approver"
        if made.approver == version.author:
            return f"{name}: its author may not approve it"
        newest = self.newest_approved(made.card_id)
        if newest > made.version:
            return f"{name} is older than version {newest}, which is approved; propose it again"
        if made.HasField("effective_from"):
            starts_us = us_of(made.effective_from)
            card = version.card
            if not card.effective_from_us <= starts_us <= card_rules.MAX_INSTANT_US:
                return f"{name} begins by its document later than it is scheduled"
            if card.effective_to_us is not None and starts_us >= card.effective_to_us:
                return f"{name} ends by its document before it is scheduled to begin"
        if made.HasField("control_size") and self.overtaken(version.card, made.control_size):
            return f"{name}: {_OVERTAKEN}"
        return None

    def approve(
        self, position: int, made: records.RateCardApproved
    ) -> tuple[str | None, list[PublishedCard]]:
        """Apply an approval. Gives (why it is refused or None, new entries)."""
        if problem := self.approval_problem(made):
            return problem, []
        version = self.versions[made.card_id, made.version]
        card = version.card
        if made.HasField("effective_from"):
            card = replace(card, effective_from_us=us_of(made.effective_from))
        version.steps.append(Step(APPROVED, position, made.approver, made.reason))
        entry = published_card(position, card, made.version, version.content_hash)
        self._newest_approved[made.card_id] = made.version
        self._put(version, entry)
        return None, [entry]

    def retirement_problem(self, made: records.RateCardRetired) -> str | None:
        """Why versions cannot be retired like this, or None."""
        if not self._operators.may(made.retired_by, APPROVER):
            return f"card {made.card_id[:70]!r}: {made.retired_by[:70]!r} is no approver"
        if not 0 <= us_of(made.effective_to) <= card_rules.MAX_INSTANT_US:
            return "'effective_to' is in the years 1970 to 9999"
        if not self._to_retire(made):
            return f"card {made.card_id[:70]!r}: there is no version {made.version} that still runs"
        return None

    def _to_retire(self, made: records.RateCardRetired) -> list[Version]:
        to_us = us_of(made.effective_to)
        found: list[Version] = []
        for version in self.of_card(made.card_id):
            if made.version not in (0, version.version):
                continue
            if not version.entries:
                if not version.is_over:
                    found.append(version)
                continue
            ends_us = version.entries[-1].card.effective_to_us
            if ends_us is None or ends_us > to_us:
                found.append(version)
        return found

    def retire(
        self, position: int, made: records.RateCardRetired
    ) -> tuple[str | None, list[PublishedCard]]:
        """Apply a retirement. Gives (why it is refused or None, new entries)."""
        if problem := self.retirement_problem(made):
            return problem, []
        to_us = us_of(made.effective_to)
        made_entries: list[PublishedCard] = []
        for version in self._to_retire(made):
            version.steps.append(Step(RETIRED, position, made.retired_by, made.reason))
            if version.entries:
                card = replace(version.entries[-1].card, effective_to_us=to_us)
                entry = published_card(position, card, version.version, version.content_hash)
                self._put(version, entry)
                made_entries.append(entry)
        return None, made_entries

    def statuses(
        self, card_id: str, control_size: int, at_us: int
    ) -> list[tuple[Version, list[Step], PublishedCard | None, RateCardStatus.ValueType]]:
        """Every version known at a control size, with its steps and where it stands at an instant.

        The oldest first.
        """
        answer: list[
            tuple[Version, list[Step], PublishedCard | None, RateCardStatus.ValueType]
        ] = []
        in_force_seen = False
        for version in reversed(list(self.of_card(card_id))):
            steps, entry = version.at(control_size)
            if not steps:
                continue
            status = _status(steps, entry, at_us)
            if status == RateCardStatus.RATE_CARD_STATUS_ACTIVE:
                if in_force_seen:
                    status = RateCardStatus.RATE_CARD_STATUS_SUPERSEDED
                in_force_seen = True
            answer.append((version, steps, entry, status))
        return answer[::-1]


def _status(steps: list[Step], entry: PublishedCard | None, at_us: int) -> RateCardStatus.ValueType:
    retired = steps[-1].what == RETIRED
    if entry is None:
        if retired:
            return RateCardStatus.RATE_CARD_STATUS_RETIRED
        return RateCardStatus.RATE_CARD_STATUS_PROPOSED
    ends_us = entry.card.effective_to_us
    if ends_us is not None and ends_us <= at_us:
        if retired:
            return RateCardStatus.RATE_CARD_STATUS_RETIRED
        return RateCardStatus.RATE_CARD_STATUS_ENDED
    if entry.card.effective_from_us > at_us:
        return RateCardStatus.RATE_CARD_STATUS_SCHEDULED
    return RateCardStatus.RATE_CARD_STATUS_ACTIVE
