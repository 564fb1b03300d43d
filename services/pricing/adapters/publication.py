"""A card published in one step, in a house without operators."""

from __future__ import annotations

from kernel import errors
from kernel.clock import timestamp_of
from pricing.adapters.card_text import card_in
from pricing.adapters.recorder import Recorder
from pricing.adapters.untied import Made, put_in_force, refuse_ties
from pricing.domain.card import Card, content_hash
from pricing.domain.card_life import CardLife, Version
from tollbook.pricing.v1 import control_pb2, pricing_pb2


async def publish(
    recorder: Recorder, request: pricing_pb2.PublishRateCardRequest, actor: str
) -> pricing_pb2.PublishRateCardResponse:
    """Publish the next version of a card; the same content as the newest is no new version.

    Errors: InvalidArgument, FailedPrecondition where another card ties with it, AlreadyExists
    where another content has the version's number or the log refuses it, Unavailable.
    """
    card = card_in(request.yaml)
    digest = content_hash(card.document())
    cards = (await recorder.current()).cards
    newest = cards.newest_version(card.card_id)
    found = _published(cards, card.card_id, newest)
    same = found is not None and found.content_hash == digest
    number = newest if same else newest + 1
    if request.validate_only:
        if not same:
            await refuse_ties(recorder, card)
        return pricing_pb2.PublishRateCardResponse(
            position=-1,
            card=pricing_pb2.CardRef(card_id=card.card_id, version=number, content_hash=digest),
        )
    if not same:
        why = await put_in_force(
            recorder, card, lambda size: _record(card, number, request, size), actor
        )
        found = _published(cards, card.card_id, number)
        if found is None:
            raise errors.AlreadyExists(
                f"the record was not applied: {why or 'its key stands for another change'}",
                reason="NOT_APPLIED",
            )
    if found is None or found.content_hash != digest:
        raise errors.AlreadyExists(
            f"version {number} of card {card.card_id!r} was published meanwhile with other"
            " content; read it, then publish again",
            reason="CARD_VERSION_EXISTS",
        )
    return pricing_pb2.PublishRateCardResponse(
        position=found.entries[0].position,
        card=pricing_pb2.CardRef(card_id=card.card_id, version=number, content_hash=digest),
    )


def _published(cards: CardLife, card_id: str, number: int) -> Version | None:
    """A version that was in force; None when there is none, or only its proposal."""
    found = cards.versions.get((card_id, number))
    return found if found is not None and found.entries else None


def _record(
    card: Card, version: int, request: pricing_pb2.PublishRateCardRequest, control_size: int
) -> Made:
    document = card.document()
    published = control_pb2.RateCardPublished(
        card_id=card.card_id,
        version=version,
        content_hash=content_hash(document),
        effective_from=timestamp_of(card.effective_from_us),
        document=document,
        author=request.author,
        approver=request.approver,
        reason=request.reason,
        control_size=control_size,
    )
    if card.effective_to_us is not None:
        published.effective_to.CopyFrom(timestamp_of(card.effective_to_us))
    # A record that came too late for the size is void: the next has a key of its own.
    key = f"card:{card.card_id}:{version}:{control_size}"
    return key, control_pb2.ControlRecord(rate_card_published=published)
