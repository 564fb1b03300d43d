"""The gate before the engine: a request waits here for its turn and its places.

The engine's own queue is first come, first served, so one account's flood would
be in everybody's way; here no more is let through than the engine runs at once,
and in the order of domain/fairness.py.
"""

from __future__ import annotations

import asyncio

from inference.domain.fairness import FairQueue, Ticket


class Gate:
    """Everything runs on one event loop. Bounded by the registry's limit of requests."""

    def __init__(self, places: int) -> None:
        self._queue = FairQueue(places)
        self._turns: dict[Ticket, asyncio.Event] = {}

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._queue.waiting

    def ask(self, account_id: str, places: int, cost: int) -> Ticket:
        """Queue up; `cost` in tokens, `places` in sequences of the engine."""
        ticket = self._queue.push(account_id, places, cost)
        self._turns[ticket] = asyncio.Event()
        self._admit()
        return ticket

    async def turn(self, ticket: Ticket) -> None:
        """Return when it is this one's turn, or it has left."""
        turn = self._turns.get(ticket)
        if turn is not None:
            await turn.wait()

    def leave(self, ticket: Ticket) -> None:
        """Go, from the queue or from the engine. May be said more than once."""
        turn = self._turns.pop(ticket, None)
        if turn is None:
            return
        if turn.is_set():
            self._queue.leave(ticket)
        else:
            self._queue.withdraw(ticket)
            turn.set()
        self._admit()

    def _admit(self) -> None:
        while (ticket := self._queue.pop()) is not None:
            self._turns[ticket].set()
