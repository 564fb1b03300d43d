"""How long a model was there, in pieces that are metered while it is. Pure; no clock.

A model's residency costs whether or not anybody asks for anything, and its start costs
before anybody is served. Both are counted apart from tokens and from each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernel.clock import timestamp_of
from tollbook.usage.v1 import usage_pb2 as usage


@dataclass(frozen=True, slots=True)
class Slice:
    """Microseconds of wall clock: from when to when, and which unit the time is of."""

    unit: int
    begin_us: int
    end_us: int

    @property
    def amount_ms(self) -> int:
        """Whole milliseconds. Slices that meet sum to the whole: both ends round alike."""
        return self.end_us // 1_000 - self.begin_us // 1_000


class Presence:
    """Slices of one engine, end to end. A clock that goes back makes none."""

    def __init__(self, slice_us: int) -> None:
        self._slice_us = slice_us
        self._unit = 0
        self._since_us = 0

    def change(self, unit: int, now_us: int) -> list[Slice]:
        """It starts (UNIT_MODEL_START_MS), is there (UNIT_MODEL_RESIDENT_MS), or is gone (0)."""
        done = self._cut(now_us)
        self._unit, self._since_us = unit, max(now_us, self._since_us)
        return done

    def due(self, now_us: int) -> list[Slice]:
        """What is long enough to be metered by now."""
        return self._cut(now_us) if now_us - self._since_us >= self._slice_us else []

    def _cut(self, now_us: int) -> list[Slice]:
        if not self._unit:
            return []
        done = Slice(self._unit, self._since_us, now_us)
        self._since_us = max(now_us, self._since_us)
        return [done] if done.amount_ms > 0 else []


def event_of(
    piece: Slice, number: int, account_id: str, engine_id: str, model: str, region: str
) -> usage.UsageEvent:
    """A slice as a usage event: no tokens, nobody's request."""
    event = usage.UsageEvent(
        event_id=f"resident:{engine_id}:{number}",
        account_id=account_id,
        served_model=model,
        base_model=model,
        region=region,
        outcome=usage.OUTCOME_COMPLETE,
        event_time=timestamp_of(piece.begin_us),
        end_time=timestamp_of(piece.end_us),
        engine_id=engine_id,
    )
    event.quantities.add(unit=piece.unit, amount=piece.amount_ms)
    return event
