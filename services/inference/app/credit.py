"""Credit as a generation needs it: a hold before the engine sees anything, or a refusal.

A port: adapters/credit.py asks pricing. A hold is ended by the event that
charges it, so a settled request gives nothing back here; only one that never
ran does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """What a hold is for, and the most it may cost."""

    account_id: str
    project_id: str
    key_id: str
    event_id: str
    served_model: str
    base_model: str
    adapter: str
    input_tokens: int
    max_output_tokens: int
    event_time_us: int
    service_tier: str = ""


class Credit(Protocol):
    """Where holds come from."""

    async def hold(self, request: Request) -> str:
        """Hold what a request may cost, and keep it held until `settled` or `release`.

        Gives the hold's id, or "" where the house lets requests go on without
        one. Errors: QuotaExceeded, Unavailable, and others that the request
        is refused with.
        """
        ...

    def settled(self, hold_id: str) -> None:
        """The event is on its way: it ends the hold."""
        ...

    def release(self, account_id: str, hold_id: str) -> None:
        """The request never ran: give the hold back."""
        ...
