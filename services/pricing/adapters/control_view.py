"""The server's own view of the control log: for receipts, and for judging a new card."""

from __future__ import annotations

import asyncio
from typing import Final

from kernel import errors
from kernel.placement import CONTROL_LOG
from pricing.adapters.ledger_client import Ledger
from pricing.domain.projection import Projection

_KEPT_REASONS: Final = 1_000


class ControlView:
    """A projection of the control log alone, kept current by following it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._moved = asyncio.Condition()
        self._ignored: dict[int, str] = {}
        self.projection = Projection(judges=False)

    async def follow(self) -> None:
        """Follow for ever; run it as a task. Errors: LogReplacedError."""
        async for run in self._ledger.follow(CONTROL_LOG, 0):
            for position, raw in enumerate(run.leaves, run.first_position):
                effects = self.projection.apply_control(
                    position, raw, run.asides.get(position, b"")
                )
                for entry in effects.ignored:
                    self._ignored[position] = entry.why
            while len(self._ignored) > _KEPT_REASONS:
                del self._ignored[next(iter(self._ignored))]
            async with self._moved:
                self._moved.notify_all()

    async def reach(self, control_size: int, limit_s: float) -> None:
        """Wait until the view knows a size of the control log. Errors: Unavailable."""
        try:
            async with asyncio.timeout(limit_s), self._moved:
                await self._moved.wait_for(lambda: self.projection.control.size >= control_size)
        except TimeoutError:
            raise errors.Unavailable(
                f"the control log is known up to {self.projection.control.size} here, the answer"
                f" needs {control_size}",
                reason="CONTROL_BEHIND",
            ) from None

    def why_ignored(self, position: int) -> str | None:
        """Why a record of late was not applied, or None when it was."""
        return self._ignored.get(position)
