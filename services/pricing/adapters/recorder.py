"""One change, one record of the control log: appended, applied, and then answered.

Owns the way a change takes: what it is checked against is current, its record
is appended under a key, and the answer waits until the projection and this
server's own view have it.
"""

from __future__ import annotations

from typing import Final

from kernel import errors
from kernel.clock import Clock, timestamp_of
from kernel.placement import CONTROL_LOG
from pricing.adapters.answers import Reader
from pricing.adapters.control_view import ControlView
from pricing.adapters.ledger_client import Ledger
from pricing.domain.control import ControlState
from tollbook.pricing.v1 import control_pb2

_WAIT_S: Final = 10.0


async def append(
    ledger: Ledger, clock: Clock, key: str, record: control_pb2.ControlRecord
) -> int | None:
    """Append a record with the time it has now; gives its position, None when the key is taken.

    Errors: as Ledger.append.
    """
    record.recorded_time.CopyFrom(timestamp_of(clock.now_us()))
    payload = record.SerializeToString(deterministic=True)
    try:
        return (await ledger.append(CONTROL_LOG, key, payload)).position
    except errors.AlreadyExists:
        return None


class Recorder:
    """Appends changes to the control log."""

    def __init__(self, reader: Reader, ledger: Ledger, view: ControlView, clock: Clock) -> None:
        self._reader = reader
        self._ledger = ledger
        self._view = view
        self.clock = clock

    @property
    def state(self) -> ControlState:
        """What the control log says, as far as this server's view has it."""
        return self._view.projection.control

    async def current(self) -> ControlState:
        """The same, with everything that was recorded before this call. Errors: Unavailable."""
        await self._view.reach(await self._ledger.size(CONTROL_LOG), _WAIT_S)
        return self.state

    async def record(self, key: str, record: control_pb2.ControlRecord, actor: str) -> str:
        """Append a record under a key and wait until it is applied.

        Gives "", or why it has no effect: the log's own rules refuse it, or
        the key stands for a change that came first. Either way the state has
        by then what there is, and the caller looks there. Errors: Unavailable.
        """
        position = await self.append(key, record, actor)
        if position is None:
            await self.reached(await self._ledger.size(CONTROL_LOG))
            return "another change was recorded meanwhile; look, and ask again"
        await self.reached(position + 1)
        return self._view.why_ignored(position) or ""

    async def append(self, key: str, record: control_pb2.ControlRecord, actor: str) -> int | None:
        """Append a record and do not wait. Gives its position; None when the key is taken."""
        record.actor = actor[:128] or "unknown"
        return await append(self._ledger, self.clock, key, record)

    async def reached(self, control_size: int) -> None:
        """Wait until the projection and the view have a control size."""
        await self._reader.wait_for_control(control_size, _WAIT_S)
        await self._view.reach(control_size, _WAIT_S)
