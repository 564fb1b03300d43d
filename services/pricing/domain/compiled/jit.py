"""How these loops are compiled, and the words of bytes that they work by.

What is kept of them is good for the sources of this folder, the domain and the
kernel, and for the contracts: limits and layouts of all of them are built in.

Bytes are read by eight at a time: whatever is read so has as many bytes more
behind it (PADDING), and what stands in those never matters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

import kernel
from kernel.jit import compiler, inlined
from tollbook.ledger.v1 import ledger_pb2
from tollbook.usage.v1 import usage_pb2

_HERE: Final = Path(__file__).parent
_FOLDERS: Final = (_HERE, *(Path(folder) for folder in kernel.__path__))

compiled: Final = compiler(
    [
        *(file for folder in _FOLDERS for file in sorted(folder.glob("*.py"))),
        _HERE.parent / "events.py",
    ],
    usage_pb2.DESCRIPTOR.serialized_pb + ledger_pb2.DESCRIPTOR.serialized_pb,
)

_HIGH_BITS: Final = 0x8080_8080_8080_8080


@inlined
def word(data: Any, place: Any) -> Any:
    """Eight bytes as one number: the compiler makes one load of it."""
    # Unsigned, so that no index is tested for being negative.
    at = np.uint64(place)
    value = np.uint64(0)
    for byte in range(8):
        value |= np.uint64(data[at + np.uint64(byte)]) << np.uint64(8 * byte)
    return value


@inlined
def begun(value: Any, left: Any) -> Any:
    """The first `left` bytes, fewer than eight, of a word."""
    return value & ((np.uint64(1) << np.uint64(8 * left)) - np.uint64(1))


@inlined
def is_ascii(data: Any, at: int, length: int) -> bool:
    """Whether all bytes of a text are below 128."""
    bits = np.uint64(0)
    left = length
    while left >= 8:
        bits |= word(data, at)
        at += 8
        left -= 8
    bits |= begun(word(data, at), left)
    return bool(bits & np.uint64(_HIGH_BITS) == np.uint64(0))


@inlined
def same_bytes(data: Any, at: int, other: Any, other_at: int, length: int) -> bool:
    """Whether two texts of one length are the same."""
    left = length
    while left >= 8:
        if word(data, at) != word(other, other_at):
            return False
        at += 8
        other_at += 8
        left -= 8
    return bool(begun(word(data, at), left) == begun(word(other, other_at), left))


@inlined
def mix(state: Any, value: Any) -> Any:
    """A hash with a number more. Equal ones mean nothing: whoever finds one compares the bytes."""
    mixed = (state ^ np.uint64(value)) * np.uint64(0x9E37_79B9_7F4A_7C15)
    return mixed ^ (mixed >> np.uint64(29))


@inlined
def mix_text(data: Any, state: Any, at: int, length: int) -> Any:
    """A hash with a text more."""
    state = mix(state, length)
    left = length
    while left >= 8:
        state = mix(state, word(data, at))
        at += 8
        left -= 8
    if left:
        state = mix(state, begun(word(data, at), left))
    return state
