"""Ids that sort by time and never collide: UUIDv7 (RFC 9562 section 5.7) in text."""

from __future__ import annotations

import os
import time
import uuid


def new_id(prefix: str) -> str:
    """Mint `PREFIX-uuid7`, e.g. `req-0193...`: unique, and sorted by time of minting."""
    unix_ms = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (unix_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (random >> 64 & 0xFFF) << 64
    value |= 0b10 << 62 | random & (1 << 62) - 1
    return f"{prefix}-{uuid.UUID(int=value)}"
