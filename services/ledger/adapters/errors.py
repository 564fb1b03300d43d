"""What the ledger says when a part of it is away, or of its leaves."""

from __future__ import annotations

from kernel.errors import FailedPrecondition, Unavailable


def away() -> Unavailable:
    """The database does not answer."""
    return Unavailable("the ledger's database is away", reason="DATABASE_AWAY", retry_after_ms=500)


def segment_not_there(error: Exception) -> FailedPrecondition:
    """The file of a sealed segment cannot be read: it says which, and what it must hold."""
    return FailedPrecondition(
        f"{error}; what it holds stays provable by the tree, ask whoever keeps the segments",
        reason="SEGMENT_NOT_THERE",
    )
