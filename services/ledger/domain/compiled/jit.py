"""How the ledger's loops are compiled, and what they share.

What is kept of them is good for the sources of this folder, the domain and the kernel, and for
the contract of usage records: limits, layouts and enumerations of all of them are built in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

import kernel
from kernel.jit import compiler, inlined
from tollbook.usage.v1 import usage_pb2

_HERE: Final = Path(__file__).parent
_FOLDERS: Final = (_HERE, _HERE.parent, *(Path(folder) for folder in kernel.__path__))

compiled: Final = compiler(
    [file for folder in _FOLDERS for file in sorted(folder.glob("*.py"))],
    usage_pb2.DESCRIPTOR.serialized_pb,
)


@inlined
def copy(out: Any, at: int, data: Any, start: int, length: int) -> int:
    """Copy bytes; gives the place after them."""
    # Unsigned, so that no index is tested for being negative: the loop becomes vector moves.
    to, source = np.uint64(at), np.uint64(start)
    for byte in range(np.uint64(length)):
        out[to + byte] = data[source + byte]
    return at + length
