"""RateCardService: cards proposed, approved, retired and looked at, each change one record.

Reads what the control log says from the server's own view of it, so an answer
names the control size it is true at. What rates the log's usage again
(validate, preview, re-rating) is drafts.py's and rerate_changes.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from kernel import errors
from kernel.clock import timestamp_of, us_of
from pricing.adapters import queries
from pricing.adapters.card_text import card_in
from pricing.adapters.recorder import Recorder
from pricing.adapters.untied import Made, put_in_force, refuse_ties
from pricing.adapters.who import operator_with
from pricing.domain.card import Card, content_hash
from pricing.domain.card_diff import Change, diff
from pricing.domain.card_life import CardLife, Version
from pricing.domain.control import ControlState
from pricing.domain.operators import APPROVER, AUTHOR
from pricing.domain.price_list import prices_of
from tollbook.pricing.v1 import card_records_pb2 as records
from tollbook.pricing.v1 import cards_pb2, control_pb2, pricing_pb2

_DEFAULT_CURRENCY: Final = "USD"


class CardChanges:
    """Answers the calls of RateCardService that are about versions."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    # Changes ------------------------------------------------------------------

    async def ProposeRateCard(  # noqa: N802 - the contract's name
        self, request: cards_pb2.ProposeRateCardRequest, context: Any
    ) -> cards_pb2.ProposeRateCardResponse:
        """Record a draft; the same content as the newest version's is the same proposal."""
        state = await self._recorder.current()
        author = operator_with(context, state.operators, AUTHOR)
        card = card_in(request.yaml)
        document = card.document()
        digest = content_hash(document)
        newest = state.cards.newest_version(card.card_id)
        version = state.cards.versions.get((card.card_id, newest))
        if version is None or version.content_hash != digest or version.is_over:
            newest += 1
            await refuse_ties(self._recorder, card)
            why = await self._recorder.record(
                f"card:{card.card_id}:{newest}",
                control_pb2.ControlRecord(
                    rate_card_proposed=records.RateCardProposed(
                        card_id=card.card_id,
                        version=newest,
                        content_hash=digest,
                        document=document,
                        supersedes=state.cards.newest_approved(card.card_id),
                        author=author.operator_id,
                        reason=request.reason,
                    )
                ),
                author.operator_id,
            )
            version = state.cards.versions.get((card.card_id, newest))
            if version is None or version.content_hash != digest:
                raise errors.FailedPrecondition(
                    why or f"version {newest} was proposed meanwhile with other content",
                    reason="NOT_APPLIED",
                )
        return cards_pb2.ProposeRateCardResponse(
            position=version.steps[0].position, card=_ref(version)
        )

    async def ApproveRateCard(  # noqa: N802 - the contract's name
        self, request: cards_pb2.ApproveRateCardRequest, context: Any
    ) -> cards_pb2.ApproveRateCardResponse:
        """Put a proposed version in force; a repeat is answered like the first."""
        state = await self._recorder.current()
        approver = operator_with(context, state.operators, APPROVER)
        version = _version(state.cards, request.card_id, request.version)
        made = records.RateCardApproved(
            card_id=request.card_id,
            version=request.version,
            content_hash=request.content_hash or version.content_hash,
            approver=approver.operator_id,
            reason=request.reason,
        )
        if request.HasField("effective_from"):
            made.effective_from.CopyFrom(request.effective_from)
        if not _is_approved_like(version, made):
            if version.author == approver.operator_id:
                raise errors.PermissionDenied(
                    f"operator {approver.operator_id!r} wrote version {request.version} of card"
                    f" {request.card_id!r}; another approves it",
                    reason="AUTHOR_APPROVES",
                )
            if problem := state.cards.approval_problem(made):
                raise errors.FailedPrecondition(problem, reason="CANNOT_APPROVE")
            card = version.card
            if made.HasField("effective_from"):
                card = replace(card, effective_from_us=us_of(made.effective_from))
            # Another card may have been put in force since it was proposed.
            why = await put_in_force(
                self._recorder, card, lambda size: _approval(made, size), approver.operator_id
            )
            if not _is_approved_like(version, made):
                raise errors.FailedPrecondition(why, reason="NOT_APPLIED")
        entry = version.entries[0]
        return cards_pb2.ApproveRateCardResponse(
            position=entry.position,
            card=_ref(version),
            effective_from=timestamp_of(entry.card.effective_from_us),
        )

    async def RetireRateCard(  # noqa: N802 - the contract's name
        self, request: cards_pb2.RetireRateCardRequest, context: Any
    ) -> cards_pb2.RetireRateCardResponse:
        """End a version or all of a card; what has ended by then stays as it is."""
        state = await self._recorder.current()
        operator = operator_with(context, state.operators, APPROVER)
        if request.version:
            _version(state.cards, request.card_id, request.version)
        elif not state.cards.newest_version(request.card_id):
            raise _no_card(request.card_id)
        to_us = (
            us_of(request.effective_to)
            if request.HasField("effective_to")
            else self._recorder.clock.now_us()
        )
        made = records.RateCardRetired(
            card_id=request.card_id,
            version=request.version,
            effective_to=timestamp_of(to_us),
            retired_by=operator.operator_id,
            reason=request.reason,
        )
        if problem := state.cards.retirement_problem(made):
            raise errors.FailedPrecondition(problem, reason="CANNOT_RETIRE")
        before = state.size
        why = await self._recorder.record(
            f"card-retired:{request.card_id}:{request.version}:{before}",
            control_pb2.ControlRecord(rate_card_retired=made),
            operator.operator_id,
        )
        if why:
            raise errors.FailedPrecondition(why, reason="NOT_APPLIED")
        position = max(
            step.position
            for version in state.cards.of_card(request.card_id)
            for step in version.steps
        )
        return cards_pb2.RetireRateCardResponse(position=position, effective_to=timestamp_of(to_us))

    # Looking ------------------------------------------------------------------

    async def DiffRateCard(  # noqa: N802 - the contract's name
        self, request: cards_pb2.DiffRateCardRequest, context: Any
    ) -> cards_pb2.DiffRateCardResponse:
        """Compare a draft, or a version, with another version."""
        state = await self._recorder.current()
        card, below = _newer(state.cards, request)
        base_version = request.base_version or max(
            (
                version.version
                for version in state.cards.of_card(card.card_id)
                if version.entries and version.version < below
            ),
            default=0,
        )
        base = _version(state.cards, card.card_id, base_version) if base_version else None
        return cards_pb2.DiffRateCardResponse(
            base=_ref(base) if base else pricing_pb2.CardRef(card_id=card.card_id),
            changes=[_change(found) for found in diff(base.card if base else None, card)],
        )

    async def GetRateCardHistory(  # noqa: N802 - the contract's name
        self, request: cards_pb2.GetRateCardHistoryRequest, context: Any
    ) -> cards_pb2.GetRateCardHistoryResponse:
        """Answer with a card's versions, by both times."""
        state = await self._recorder.current()
        known = self._known_size(state, request, "known_at")
        at_us = self._instant_us(request, "effective_at")
        versions = list(_history(state, request.card_id, known, at_us))
        if not versions:
            raise _no_card(request.card_id)
        return cards_pb2.GetRateCardHistoryResponse(versions=versions, control_size=known)

    async def ListPrices(  # noqa: N802 - the contract's name
        self, request: cards_pb2.ListPricesRequest, context: Any
    ) -> cards_pb2.ListPricesResponse:
        """Answer with what prices a model's leaves, by both times."""
        state = await self._recorder.current()
        known = self._known_size(state, request, "known_at")
        currency = request.currency or _DEFAULT_CURRENCY
        if request.account_id:
            account = state.account_at(request.account_id, known)
            if account is None:
                raise errors.NotFound(
                    f"there was no account {request.account_id!r} at control size {known}",
                    reason="ACCOUNT_NOT_FOUND",
                )
            currency = account.currency
        found = prices_of(
            state.catalogue(known),
            request.account_id,
            currency,
            request.model,
            request.service_tier,
            self._instant_us(request, "effective_at"),
        )
        return cards_pb2.ListPricesResponse(
            prices=[
                cards_pb2.Price(
                    leaf=price.leaf,
                    card=pricing_pb2.CardRef(
                        card_id=price.priced.published.card.card_id,
                        version=price.priced.published.version,
                        content_hash=price.priced.published.content_hash,
                    ),
                    line_id=price.priced.line.line_id,
                    unit_price=queries.amount(currency, price.priced.price.unit_pico),
                )
                for price in found
            ],
            control_size=known,
        )

    def _known_size(self, state: ControlState, request: Any, name: str) -> int:
        """The control size that was known at an instant of a request, or now."""
        if not request.HasField(name):
            return state.size
        return state.size_known_at(us_of(getattr(request, name)))

    def _instant_us(self, request: Any, name: str) -> int:
        if not request.HasField(name):
            return self._recorder.clock.now_us()
        return us_of(getattr(request, name))


def _no_card(card_id: str) -> errors.NotFound:
    return errors.NotFound(
        f"there is no card {card_id!r}, or there was none then",
        reason="CARD_NOT_FOUND",
        metadata={"card_id": card_id},
    )


def _version(cards: CardLife, card_id: str, number: int) -> Version:
    """A version of a card. Errors: NotFound."""
    version = cards.versions.get((card_id, number))
    if version is None:
        raise errors.NotFound(
            f"there is no version {number} of card {card_id!r}; the newest is"
            f" {cards.newest_version(card_id)}",
            reason="CARD_NOT_FOUND",
            metadata={"card_id": card_id},
        )
    return version


def _newer(cards: CardLife, request: cards_pb2.DiffRateCardRequest) -> tuple[Card, int]:
    """The newer side of a comparison, and the number that the older one's stays below."""
    if request.yaml:
        card = card_in(request.yaml)
        return card, cards.newest_version(card.card_id) + 1
    number = request.version or cards.newest_version(request.card_id)
    if not number:
        raise _no_card(request.card_id)
    return _version(cards, request.card_id, number).card, number


def _is_approved_like(version: Version, made: records.RateCardApproved) -> bool:
    """Whether a version is approved already by the same operator and in the same way."""
    if not version.entries or version.approver != made.approver:
        return False
    wanted_us = (
        us_of(made.effective_from)
        if made.HasField("effective_from")
        else version.card.effective_from_us
    )
    return (
        version.content_hash == made.content_hash
        and version.entries[0].card.effective_from_us == wanted_us
    )


def _approval(made: records.RateCardApproved, control_size: int) -> Made:
    """The record of an approval of what was looked at, at a control size, beside other cards."""
    made.control_size = control_size
    key = f"card-approved:{made.card_id}:{made.version}:{control_size}"
    return key, control_pb2.ControlRecord(rate_card_approved=made)


def _ref(version: Version) -> pricing_pb2.CardRef:
    return pricing_pb2.CardRef(
        card_id=version.card.card_id,
        version=version.version,
        content_hash=version.content_hash,
    )


def _change(found: Change) -> cards_pb2.CardChange:
    return cards_pb2.CardChange(
        line_id=found.line_id,
        field=found.field,
        before=found.before,
        after=found.after,
        factor=found.factor,
    )


def _history(
    state: ControlState, card_id: str, known: int, at_us: int
) -> Iterator[cards_pb2.RateCardVersion]:
    for version, steps, entry, status in state.cards.statuses(card_id, known, at_us):
        card = entry.card if entry is not None else version.card
        told = cards_pb2.RateCardVersion(
            card=_ref(version),
            status=status,
            effective_from=timestamp_of(card.effective_from_us),
            supersedes=version.supersedes,
            steps=[
                cards_pb2.RateCardStep(
                    what=step.what,
                    position=step.position,
                    recorded_time=timestamp_of(state.recorded_us(step.position)),
                    actor=step.actor,
                    reason=step.reason,
                )
                for step in steps
            ],
        )
        if card.effective_to_us is not None:
            told.effective_to.CopyFrom(timestamp_of(card.effective_to_us))
        yield told
