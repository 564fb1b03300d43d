"""A card comes into force only where no other ties with it: looked at, recorded, refused if late.

Two servers may each find nothing that ties and put two cards in force that do.
So a record says at which size of the control log was looked; where another card
came in between, every reader refuses it (pricing/domain/card_life.py), and here
it is looked at again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from kernel import errors
from pricing.adapters.recorder import Recorder
from pricing.domain.card import Card
from pricing.domain.card_ties import ties
from tollbook.pricing.v1 import control_pb2

# Each time one card at least came in between: so many changes at once are no pricing team's.
_MAX_LOOKS: Final = 16

Made = tuple[str, control_pb2.ControlRecord]
"""The key of a record, and the record."""


async def refuse_ties(recorder: Recorder, card: Card) -> int:
    """Give the control size at which no other card ties with this one.

    Errors: FailedPrecondition where one does, Unavailable.
    """
    state = await recorder.current()
    # The state moves on while this waits: what is looked at, and its size, are of one moment.
    size, entries, now_us = state.size, state.cards.entries(state.size), recorder.clock.now_us()
    # A large card takes a while to look through: not on the loop that answers everybody.
    found = await asyncio.to_thread(lambda: list(ties(card, entries, now_us)))
    if found:
        more = f"; {len(found) - 1} lines more" if len(found) > 1 else ""
        raise errors.FailedPrecondition(f"{found[0].words}{more}", reason="AMBIGUOUS")
    return size


async def put_in_force(
    recorder: Recorder, card: Card, made_at: Callable[[int], Made], actor: str
) -> str:
    """Record what puts a card in force; `made_at` gives it for the control size looked at.

    Gives what Recorder.record gives. Errors: FailedPrecondition where another card ties with it,
    Unavailable.
    """
    for _ in range(_MAX_LOOKS):
        size = await refuse_ties(recorder, card)
        key, record = made_at(size)
        why = await recorder.record(key, record, actor)
        if not why or not recorder.state.cards.overtaken(card, size):
            return why
    raise errors.Unavailable(
        f"other cards came into force {_MAX_LOOKS} times while card {card.card_id!r} was looked"
        " at beside them; nothing was recorded of it, ask again",
        reason="CARDS_MOVE",
    )
