"""Reading protobuf's varints in compiled loops, for whoever takes a message out of its bytes.

Source: protobuf's encoding, base 128 varints.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from kernel.jit import inlined

NONE: Final = -1
"""The place after a varint that is none."""


@inlined
def varint(data: Any, at: int, end: int) -> tuple[int, int]:
    """(value, place after it) of a varint below 2**63; place NONE when it is none."""
    value: Any = 0
    shift = 0
    while at < end and shift < 63:
        # Unsigned, so that no index is tested for being negative.
        byte = np.int64(data[np.uint64(at)])
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return 0, NONE
