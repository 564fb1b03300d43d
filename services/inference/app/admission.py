"""What a request takes before the engine sees it, in this order: turn, room in the spool, hold.

Owned by the request, one each. Whatever ends it, `close` gives back what is still taken.
"""

from __future__ import annotations

from inference.adapters.spool import Spool
from inference.app.credit import Credit, Request
from inference.app.gate import Gate
from inference.domain.fairness import Ticket
from kernel import errors


class Admission:
    """See the module. `stopped` ends a wait for the turn."""

    def __init__(self, gate: Gate, spool: Spool, credit: Credit) -> None:
        self._gate = gate
        self._spool = spool
        self._credit = credit
        self._ticket: Ticket | None = None
        self._reserved_bytes = 0
        self.hold_id = ""
        self._stopped = False

    def stop(self) -> None:
        """Its callers are gone: nothing more is taken for it."""
        self._stopped = True
        self.leave_gate()

    async def turn(self, account_id: str, places: int, cost: int, *, yields: bool) -> None:
        """Wait for the turn. Errors: Unavailable, when it was stopped."""
        self._not_stopped()
        self._ticket = self._gate.ask(account_id, places, cost, yields=yields)
        await self._gate.turn(self._ticket)
        self._not_stopped()

    async def hold(self, size: int, request: Request) -> None:
        """Take room for `size` bytes, and hold what the request may cost.

        Errors: Unavailable, and the credit's own.
        """
        if not self._spool.reserve(size):
            raise errors.Unavailable(
                "the usage spool is full: nothing may be generated that cannot be recorded",
                reason="SPOOL_FULL",
                retry_after_ms=1_000,
            )
        self._reserved_bytes = size
        self.hold_id = await self._credit.hold(request)
        self._not_stopped()

    def _not_stopped(self) -> None:
        if self._stopped:
            raise errors.Unavailable("stopped before it began", reason="STOPPED")

    def leave_gate(self) -> None:
        """The engine has room again."""
        if self._ticket is not None:
            self._gate.leave(self._ticket)

    def refused(self, account_id: str) -> None:
        """It never ran: its hold is given back."""
        if self.hold_id:
            self._credit.release(account_id, self.hold_id)

    def settled(self) -> None:
        """Its event is on the way, and ends its hold."""
        self._credit.settled(self.hold_id)

    def close(self) -> None:
        """Over, one way or the other."""
        self.leave_gate()
        self._spool.release(self._reserved_bytes)
