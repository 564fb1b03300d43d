"""The server's own view of the control log: for receipts and for judging a new card."""

from __future__ import annotations

import asyncio

from kernel.placement import CONTROL_LOG
from pricing.adapters.ledger_client import Ledger
from pricing.domain.projection import Projection


class ControlView:
    """A projection of the control log alone, kept current by following it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._moved = asyncio.Condition()
        self.projection = Projection()

    async def follow(self) -> None:
        """Follow for ever; run it as a task."""
        async for run in self._ledger.follow(CONTROL_LOG, 0):
            for position, raw in enumerate(run.leaves, run.first_position):
                self.projection.apply_control(position, raw)
            async with self._moved:
                self._moved.notify_all()

    async def reach(self, control_size: int) -> None:
        """Wait until the view knows a size of the control log."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.projection.control_size >= control_size)
