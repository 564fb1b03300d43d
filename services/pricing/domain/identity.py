"""How an event is found again: a digest of its identity.

An event id is any text a producer chose, of up to 128 characters, NUL
included, which the database's text cannot hold. Sixteen bytes of SHA-256
stand for it, and keep the largest table narrow.
"""

from __future__ import annotations

import hashlib


def identity_of(account_id: str, event_id: str) -> bytes:
    """Digest (16 bytes) of an event's identity."""
    # The length keeps ("a", "bc") and ("ab", "c") apart.
    text = f"{len(account_id)}:{account_id}{event_id}"
    return hashlib.sha256(text.encode()).digest()[:16]
