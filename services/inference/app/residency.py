"""Meters what an engine costs by being there, and by coming up: usage events of their own.

They are the account's that the house names for it; without one nothing is metered. A slice
is in the spool when it is over, so a kill loses at most the one under way.
"""

from __future__ import annotations

import asyncio

from inference.adapters.spool import Spool
from inference.app.books import Books
from inference.app.streams import Streams
from inference.domain.records import Noted
from inference.domain.residency import Presence, Slice, event_of
from kernel.clock import Clock

_NO_TRACE = b""


class Residency:
    """One engine's. `slice_ms`: how long a slice is at the least, but for the last of a stay."""

    def __init__(
        self,
        spool: Spool,
        streams: Streams,
        books: Books,
        clock: Clock,
        account_id: str,
        model: str,
        region: str,
        slice_ms: int,
    ) -> None:
        self._spool = spool
        self._streams = streams
        self._books = books
        self._clock = clock
        self._account_id = account_id
        self._model = model
        self._region = region
        self._slice_ms = slice_ms
        self._presence = Presence(slice_ms * 1_000)
        self._number = 0

    def change(self, unit: int) -> None:
        """See domain.residency.Presence.change."""
        self._meter(self._presence.change(unit, self._clock.now_us()))

    async def meter_for_ever(self) -> None:
        """Write each slice when it is over."""
        while True:
            await asyncio.sleep(self._slice_ms / 1_000)
            self._meter(self._presence.due(self._clock.now_us()))

    def _meter(self, slices: list[Slice]) -> None:
        for piece in slices if self._account_id else ():
            event = event_of(
                piece,
                self._number,
                self._account_id,
                self._books.book.engine_id,
                self._model,
                self._region,
            )
            self._number += 1
            data = event.SerializeToString(deterministic=True)
            outbound = self._streams.usage_event(self._account_id, data, _NO_TRACE, _NO_TRACE)
            self._spool.append(Noted(self._books.count(), outbound))
