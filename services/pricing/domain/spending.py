"""What usage is summed by, for spend limits, usage reports and statements.

The sums are by the minute of the event's own time: every window of every time
zone in use begins at a full minute, so any of them is a sum of these.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pricing.domain.catalogue import Priced
from pricing.domain.dimensions import Context, LeafKey
from pricing.domain.events import Event
from pricing.domain.rating import outcome_word
from pricing.domain.state import EVENT, Use
from pricing.domain.windows import LAST_US, MINUTE_US, minute_us

_LEAF: Final = Use._fields.index("leaf")
_MINUTE: Final = Use._fields.index("minute_us")


def use_of(
    account_id: str, project_id: str, key_id: str, context: Context, outcome: int, minute: int
) -> Use:
    """What an event is summed by; `minute` is of its time."""
    return Use(
        account_id,
        project_id,
        key_id,
        context.model,
        context.adapter,
        context.service_tier,
        context.region,
        outcome_word(outcome),
        EVENT,
        minute,
    )


def use_of_event(event: Event) -> Use:
    """The same, of an event as rating reads it."""
    return use_of(
        event.account_id,
        event.project_id,
        event.key_id,
        event.context,
        event.outcome,
        minute_us(event.event_time_us),
    )


def leaf_text(key: LeafKey) -> str:
    """A leaf's dimensions in one text: `token/out/text/none/default/plain/`."""
    return "/".join(key)


def leaf_use(use: Use, leaf: str, card_id: str = "", version: int = 0, line_id: str = "") -> Use:
    """A leaf of it, named by its `leaf_text`, and what prices it.

    One is made for each leaf of an event: as a tuple it takes a fifth of the time of `_replace`.
    """
    return tuple.__new__(Use, (*use[:_LEAF], leaf, use[_MINUTE], card_id, version, line_id))


def line_use(use: Use, leaf: str, priced: Priced) -> Use:
    """A leaf of it, with the line that prices it."""
    known = priced.published
    return leaf_use(use, leaf, known.card.card_id, known.version, priced.line.line_id)


def minutes(times_us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The minute of each of many instants, counted from the epoch."""
    return np.clip(times_us, 0, LAST_US) // MINUTE_US
