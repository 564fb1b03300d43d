"""Rows of `usage_event` as COPY takes them in binary: made whole, with no object for any of them.

Source: PostgreSQL's manual, COPY, "Binary Format".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from pricing.domain.applications import Placed
from pricing.domain.identity import IDENTITY_BYTES

COLUMNS: Final = ("identity", "log", "log_position")
BEGIN: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END: Final = b"\xff\xff"
_PIECE_BYTES: Final = 64 * 1024
"""As much as waits in this process, and not in the socket, when the last piece is taken."""


def binary(log: str, placed: Placed) -> bytes:
    """The rows of events of one log; BEGIN stands before the first log's, END after the last's."""
    name = log.encode()
    fields: list[tuple[str, str]] = [
        ("columns", ">i2"),
        ("identity_bytes", ">i4"),
        ("identity", f"V{IDENTITY_BYTES}"),
        ("log_bytes", ">i4"),
        ("log", f"V{len(name)}"),
        ("log_position_bytes", ">i4"),
        ("log_position", ">i8"),
    ]
    rows = np.empty(len(placed.positions), dtype=fields)
    rows["columns"] = len(COLUMNS)
    rows["identity_bytes"] = IDENTITY_BYTES
    rows["identity"] = np.ascontiguousarray(placed.identities).view(f"V{IDENTITY_BYTES}")[:, 0]
    rows["log_bytes"] = len(name)
    rows["log"] = np.void(name)
    rows["log_position_bytes"] = 8
    rows["log_position"] = placed.positions
    return rows.tobytes()


def whole(parts: Iterable[tuple[str, Placed]]) -> list[bytes]:
    """All that one COPY takes, in pieces."""
    rows = b"".join((BEGIN, *(binary(log, placed) for log, placed in parts), END))
    return [rows[start : start + _PIECE_BYTES] for start in range(0, len(rows), _PIECE_BYTES)]
