"""The gate before the engine: a request waits here for its turn and its places.

The engine's own queue is first come, first served, so one account's flood would
be in everybody's way; here no more is let through than the engine runs at once,
and in the order of domain/fairness.py.

What yields (a batch's lines) has a queue of its own, fair between accounts too. It goes
only while nobody else waits, into at most one place of YIELDED_ONE_OF.
"""

from __future__ import annotations

import asyncio
from typing import Final

from inference.domain.fairness import FairQueue, Ticket

YIELDED_ONE_OF: Final = 4


def yielded_places(places: int) -> int:
    """Of so many places those that what yields may have, at the most."""
    return max(1, places // YIELDED_ONE_OF)


class Gate:
    """Everything runs on one event loop. Bounded by the registry's limit of requests."""

    def __init__(self, places: int) -> None:
        self._queue = FairQueue(places)
        self._yielding = FairQueue(yielded_places(places))
        self._yields: set[Ticket] = set()
        self._turns: dict[Ticket, asyncio.Event] = {}

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._queue.waiting + self._yielding.waiting

    def ask(self, account_id: str, places: int, cost: int, *, yields: bool = False) -> Ticket:
        """Queue up; `cost` in tokens, `places` in sequences of the engine."""
        queue = self._yielding if yields else self._queue
        ticket = queue.push(account_id, places, cost)
        if yields:
            self._yields.add(ticket)
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
        yields = ticket in self._yields
        self._yields.discard(ticket)
        queue = self._yielding if yields else self._queue
        if turn.is_set():
            queue.leave(ticket)
            if yields:
                self._queue.take_back(ticket.places)
        else:
            queue.withdraw(ticket)
            turn.set()
        self._admit()

    def _admit(self) -> None:
        while (ticket := self._queue.pop()) is not None:
            self._turns[ticket].set()
        while (ticket := self._yielding.next()) is not None and self._queue.lend(ticket.places):
            self._yielding.admit(ticket)
            self._turns[ticket].set()
