"""How an event is found again: a digest of its identity.

An event id is any text a producer chose, of up to 128 characters, NUL
included, which the database's text cannot hold. Sixteen bytes of SHA-256
stand for it, and keep the largest table narrow.
"""

from __future__ import annotations

import hashlib
from typing import Final

IDENTITY_BYTES: Final = 16


def identity_of(account_id: str, event_id: str) -> bytes:
    """Digest (16 bytes) of an event's identity."""
    text = identity_prefix(account_id) + event_id.encode()
    return hashlib.sha256(text).digest()[:IDENTITY_BYTES]


def identity_prefix(account_id: str) -> bytes:
    """What stands before the event's id; the length keeps ("a", "bc") and ("ab", "c") apart."""
    return f"{len(account_id)}:{account_id}".encode()
