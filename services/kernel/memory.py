"""Memory of a process that moves large messages: what it freed is used again.

The C library takes a block beyond a threshold from the system and gives it back when it is freed.
Each page of the next is then new, and is zeroed when it is first touched: of messages of 2 MB that
costs ten times what writing them does.

Source: glibc's mallopt(3); "M_MMAP_THRESHOLD", "M_TRIM_THRESHOLD".
"""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3

LARGEST_BYTES: Final = 32 * 1024 * 1024
"""Blocks up to it are kept: glibc takes no larger number."""
KEPT_BYTES: Final = 64 * 1024 * 1024
"""What lies free at the end of an arena is given back beyond this."""


def keep_freed() -> bool:
    """Keep what is freed, up to the limits above, for what is asked for next; for this process.

    False where the C library has no such setting (musl, macOS): all works there, and slower.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_BYTES) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
