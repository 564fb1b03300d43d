"""Who goes next to the engine, when more wants in than fits: fair between accounts.

Start-time fair queueing (Goyal, Vin, Cheng 1996), pure. A request that comes is
given a start: the virtual time of now, or the end of its account's last request
if that is later; its account's next one starts after it by its cost. The one
with the least start goes next, and its start is the virtual time from then on.
So the length of one account's queue changes nothing for another: whoever has
nothing waiting or just served starts at once, and among those that always have
something waiting each gets the same cost through, to within one request.

An account never has all places: some are kept for those who come after it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

# One place of this many is out of reach for an account that has all the others.
KEPT_ONE_OF: Final = 8
# Accounts that have nothing waiting and are remembered for what they had.
MAX_REMEMBERED: Final = 10_000


@dataclass(eq=False, slots=True)
class Ticket:
    """A request in the queue or in the engine. `cost` is in tokens, `places` in sequences."""

    account_id: str
    places: int
    cost: int
    start: int = 0
    order: int = 0


class FairQueue:
    """Tickets that wait, and the places that are taken."""

    def __init__(self, places: int) -> None:
        if places < 1:
            raise ValueError(f"{places} places")
        self.places = places
        self.account_places = places - places // KEPT_ONE_OF
        self._virtual = 0
        self._order = 0
        self._free = places
        self._taken: dict[str, int] = {}
        self._waiting: dict[str, deque[Ticket]] = {}
        self._ends: OrderedDict[str, int] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Tickets that are not admitted."""
        return sum(len(tickets) for tickets in self._waiting.values())

    @property
    def free(self) -> int:
        """Places that nobody has."""
        return self._free

    def lend(self, places: int) -> bool:
        """Give places to those of another queue, if nobody here waits and so many are free."""
        if self._waiting or places > self._free:
            return False
        self._free -= places
        return True

    def take_back(self, places: int) -> None:
        """What was lent is free again."""
        self._free += places

    def push(self, account_id: str, places: int, cost: int) -> Ticket:
        """Queue a request. One that wants more places than an account may have gets those."""
        if places < 1 or cost < 1:
            raise ValueError(f"{places} places, cost {cost}")
        self._order += 1
        ticket = Ticket(account_id, min(places, self.account_places), cost, order=self._order)
        ticket.start = max(self._virtual, self._ends.get(account_id, 0))
        self._ends[account_id] = ticket.start + cost
        self._ends.move_to_end(account_id)
        if len(self._ends) > MAX_REMEMBERED:
            self._ends.popitem(last=False)
        self._waiting.setdefault(account_id, deque()).append(ticket)
        return ticket

    def pop(self) -> Ticket | None:
        """Admit the next one; None when nobody waits or what is next does not fit yet."""
        ticket = self.next()
        if ticket is not None:
            self.admit(ticket)
        return ticket

    def next(self) -> Ticket | None:
        """What `pop` would admit.

        What is next is not overtaken by what is smaller, or a request with many
        choices would wait for ever; but an account that has all it may have is
        passed over.
        """
        heads = (
            tickets[0]
            for account_id, tickets in self._waiting.items()
            if self._taken.get(account_id, 0) + tickets[0].places <= self.account_places
        )
        ticket = min(heads, key=lambda head: (head.start, head.order), default=None)
        return None if ticket is None or ticket.places > self._free else ticket

    def admit(self, ticket: Ticket) -> None:
        """Give its places to what `next` gave."""
        self._forget(ticket)
        self._virtual = max(self._virtual, ticket.start)
        self._free -= ticket.places
        self._taken[ticket.account_id] = self._taken.get(ticket.account_id, 0) + ticket.places

    def withdraw(self, ticket: Ticket) -> None:
        """Take out one that waits. What its account has queued behind it keeps its starts."""
        self._forget(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Give back the places of one that was admitted."""
        self._free += ticket.places
        left = self._taken[ticket.account_id] - ticket.places
        if left:
            self._taken[ticket.account_id] = left
        else:
            del self._taken[ticket.account_id]

    def _forget(self, ticket: Ticket) -> None:
        tickets = self._waiting[ticket.account_id]
        tickets.remove(ticket)
        if not tickets:
            del self._waiting[ticket.account_id]
