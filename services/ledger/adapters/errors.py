"""What the ledger says when a part of it is away."""

from __future__ import annotations

from kernel.errors import Unavailable


def away() -> Unavailable:
    """The database does not answer."""
    return Unavailable("the ledger's database is away", reason="DATABASE_AWAY", retry_after_ms=500)
