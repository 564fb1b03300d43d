"""What was seen before, asked of much memory: a split block Bloom filter, and a look into a run.

A filter of many millions of entries is larger than any cache, and then what a question costs is
the waiting for memory: once here, where a plain Bloom filter waits for each bit it looks at. A
block is eight words of 32 bits, and an entry sets one bit in each.

Source: Apache Parquet's format, BloomFilter.md (block by the hash's upper half, the eight odd
constants, the upper five bits of each product). The hashes are the fingerprints themselves, which
are parts of a SHA-256.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kernel.jit import inlined
from ledger.domain.compiled.jit import compiled

WORDS: Final = 8
_BLOCK_BITS: Final = WORDS * 32
_BITS_PER_ENTRY: Final = 16

_SALT: Final = np.array(
    [
        0x47B6137B,
        0x44974D91,
        0x8824AD5B,
        0xA2B7289D,
        0x705495C7,
        0x2DF1424B,
        0x9EFC4947,
        0x5C6BFB31,
    ],
    dtype=np.uint32,
)
_HALF: Final = np.uint64(32)


@inlined
def _block_of(fingerprint: Any, blocks: Any) -> Any:
    return ((fingerprint >> _HALF) * blocks) >> _HALF


@inlined
def _bit_of(fingerprint: Any, word: Any) -> Any:
    key = np.uint32(fingerprint & np.uint64(0xFFFFFFFF))
    return np.uint32(1) << np.uint32(np.uint32(key * _SALT[word]) >> np.uint32(27))


@compiled
def put(words: Any, fingerprints: Any) -> None:
    """Put entries in. `words`: (blocks, WORDS) of 32 bits; `fingerprints`: 64 bits each."""
    blocks = np.uint64(len(words))
    for fingerprint in fingerprints:
        block = words[_block_of(fingerprint, blocks)]
        for word in range(WORDS):
            block[word] |= _bit_of(fingerprint, word)


@compiled
def suspect(words: Any, fingerprints: Any, found: Any) -> None:
    """Set `found` where a fingerprint may have been put in; all others never were."""
    blocks = np.uint64(len(words))
    for index in range(len(fingerprints)):
        fingerprint = fingerprints[index]
        block = words[_block_of(fingerprint, blocks)]
        missing = np.uint32(0)
        for word in range(WORDS):
            bit = _bit_of(fingerprint, word)
            missing |= bit & ~block[word]
        if missing == 0:
            found[index] = True


@compiled
def lookup(run: Any, wanted: Any, first: Any) -> int:
    """For each wanted fingerprint the place of the first one in a sorted run that is not smaller.
    Gives how many of them are in the run.

    Fingerprints are spread evenly, so one is near the place that its size says: a few steps from
    there wait for memory once or twice, halving the run would wait a dozen times.
    """
    count = len(run)
    found = 0
    for index in range(len(wanted)):
        value = wanted[index]
        at: Any = np.int64(((value >> _HALF) * np.uint64(count)) >> _HALF)
        step: Any = np.int64(1)
        # The place is in [low, high]: all below low are smaller, what stands at high is not.
        if at < count and run[at] < value:
            low = at + 1
            while at + step < count and run[at + step] < value:
                low = at + step + 1
                step *= 2
            high = min(at + step, count)
        else:
            high = min(at, count)
            while at - step >= 0 and not run[at - step] < value:
                high = at - step
                step *= 2
            low = max(np.int64(0), at - step + 1)
        while low < high:
            middle = (low + high) // 2
            if run[middle] < value:
                low = middle + 1
            else:
                high = middle
        first[index] = low
        if low < count and run[low] == value:
            found += 1
    return found


class Filter:
    """A Bloom filter. With more entries than its capacity it is wrong more often, never about a
    "no".
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        blocks = max(1, capacity * _BITS_PER_ENTRY // _BLOCK_BITS)
        self._words = np.zeros((blocks, WORDS), dtype=np.uint32)

    def add(self, fingerprints: npt.NDArray[np.uint64]) -> None:
        """Put entries in."""
        put(self._words, fingerprints)

    def look(self, fingerprints: npt.NDArray[np.uint64], found: npt.NDArray[np.bool_]) -> None:
        """Set `found` for those that may have been put in; the others never were."""
        suspect(self._words, fingerprints, found)
