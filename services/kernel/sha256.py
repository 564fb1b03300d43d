"""SHA-256 of many messages at once: sixteen lanes that a vector unit runs side by side.

Hashing one small message at a time costs more in calls than in hashing. Here
each lane works on a message of its own and takes the next one when it is
done; the loops over lanes have a fixed length, so the compiler turns each into
a few vector instructions.

Source: FIPS 180-4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kernel.jit import compiler, inlined

compiled: Final = compiler([Path(__file__), Path(__file__).with_name("jit.py")])

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

LANES: Final = 16
NO_PREFIX: Final = -1

_SCHEDULE: Final = 8  # rows 0-7 of the scratch are the working state, then 64 rows of schedule


def _first_primes(count: int) -> list[int]:
    primes: list[int] = []
    candidate = 2
    while len(primes) < count:
        if all(candidate % prime for prime in primes):
            primes.append(candidate)
        candidate += 1
    return primes


def _root_bits(number: int, degree: int) -> int:
    """First 32 bits of the fraction of a number's square or cube root (section 4.2.2, 5.3.3)."""
    shifted = number << (32 * degree)
    low, high = 0, 1 << 40
    while low < high:  # the largest integer whose power does not pass `shifted`
        middle = (low + high + 1) // 2
        if middle**degree <= shifted:
            low = middle
        else:
            high = middle - 1
    return low & 0xFFFFFFFF


_K: Final = np.array([_root_bits(prime, 3) for prime in _first_primes(64)], dtype=np.uint32)
_H: Final = np.array([_root_bits(prime, 2) for prime in _first_primes(8)], dtype=np.uint32)


@inlined
def _rotate(word: Any, count: Any) -> Any:
    return np.uint32((word >> np.uint32(count)) | (word << np.uint32(32 - count)))


@inlined
def _round(s: Any, a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int, t: int) -> None:
    k = _K[t]
    for lane in range(LANES):
        at_e = s[e * LANES + lane]
        at_a = s[a * LANES + lane]
        at_b = s[b * LANES + lane]
        at_g = s[g * LANES + lane]
        sum_1 = np.uint32(_rotate(at_e, 6) ^ _rotate(at_e, 11) ^ _rotate(at_e, 25))
        choice = np.uint32(at_g ^ (at_e & (s[f * LANES + lane] ^ at_g)))
        # Each cast keeps the sum in 32 bits, without which no vector instruction fits.
        one = np.uint32(
            s[h * LANES + lane] + sum_1 + choice + k + s[(_SCHEDULE + t) * LANES + lane]
        )
        sum_0 = np.uint32(_rotate(at_a, 2) ^ _rotate(at_a, 13) ^ _rotate(at_a, 22))
        majority = np.uint32((at_a & at_b) ^ (s[c * LANES + lane] & (at_a ^ at_b)))
        s[d * LANES + lane] = np.uint32(s[d * LANES + lane] + one)
        s[h * LANES + lane] = np.uint32(one + sum_0 + majority)


@compiled
def _compress(s: Any) -> None:
    """Section 6.2.2 steps 1-3 for all lanes; the message's 16 words stand in the schedule."""
    for t in range(16, 64):
        at = (_SCHEDULE + t) * LANES
        for lane in range(LANES):
            x = s[at - 15 * LANES + lane]
            y = s[at - 2 * LANES + lane]
            s[at + lane] = np.uint32(
                s[at - 16 * LANES + lane]
                + np.uint32(_rotate(x, 7) ^ _rotate(x, 18) ^ (x >> np.uint32(3)))
                + s[at - 7 * LANES + lane]
                + np.uint32(_rotate(y, 17) ^ _rotate(y, 19) ^ (y >> np.uint32(10)))
            )
    for t in range(0, 64, 8):
        # The eight variables change roles instead of places.
        _round(s, 0, 1, 2, 3, 4, 5, 6, 7, t)
        _round(s, 7, 0, 1, 2, 3, 4, 5, 6, t + 1)
        _round(s, 6, 7, 0, 1, 2, 3, 4, 5, t + 2)
        _round(s, 5, 6, 7, 0, 1, 2, 3, 4, t + 3)
        _round(s, 4, 5, 6, 7, 0, 1, 2, 3, t + 4)
        _round(s, 3, 4, 5, 6, 7, 0, 1, 2, t + 5)
        _round(s, 2, 3, 4, 5, 6, 7, 0, 1, t + 6)
        _round(s, 1, 2, 3, 4, 5, 6, 7, 0, t + 7)


@inlined
def _word(data: Any, place: int) -> Any:
    at = np.uint64(place)  # unsigned, so that no index is tested for being negative
    return np.uint32(
        (np.uint32(data[at]) << np.uint32(24))
        | (np.uint32(data[at + np.uint64(1)]) << np.uint32(16))
        | (np.uint32(data[at + np.uint64(2)]) << np.uint32(8))
        | np.uint32(data[at + np.uint64(3)])
    )


@inlined
def _edge_word(data: Any, start: int, length: int, prefix: int, extra: int, at: int) -> Any:
    """The word at `at` of a message where it begins with a prefix, or ends (section 5.1.1)."""
    value = np.uint32(0)
    for place in range(at, at + 4):
        byte = np.uint32(0)
        if place < extra:
            byte = np.uint32(prefix)
        elif place < length:
            byte = np.uint32(data[start + place - extra])
        elif place == length:
            byte = np.uint32(0x80)
        value = np.uint32((value << np.uint32(8)) | byte)
    return value


@inlined
def _load(s: Any, lane: int, data: Any, start: int, length: int, prefix: int, block: int) -> None:
    """Put a block of a message into the schedule of a lane. `length` counts the prefix."""
    extra = 0 if prefix < 0 else 1
    first = block * 64
    base = start + first - extra
    row = _SCHEDULE * LANES + lane
    if first >= extra and first + 64 <= length:
        for word in range(16):
            s[np.uint64(row + word * LANES)] = _word(data, base + word * 4)
        return
    whole = min(16, max(0, (length - first) // 4))
    for word in range(whole):
        if word == 0 and first < extra:
            s[row] = _edge_word(data, start, length, prefix, extra, 0)
        else:
            s[np.uint64(row + word * LANES)] = _word(data, base + word * 4)
    if whole == 16:
        return
    s[row + whole * LANES] = np.uint32(0)
    if first + whole * 4 <= length:
        s[row + whole * LANES] = _edge_word(data, start, length, prefix, extra, first + whole * 4)
    for word in range(whole + 1, 16):
        s[row + word * LANES] = np.uint32(0)
    if first + 64 >= length + 9:  # the last block ends in the message's length in bits
        s[row + 14 * LANES] = np.uint32((length * 8) >> 32)
        s[row + 15 * LANES] = np.uint32((length * 8) & 0xFFFFFFFF)


@compiled
def _hash_slices(data: Any, starts: Any, ends: Any, prefix: int, out: Any) -> None:
    count = len(starts)
    s = np.zeros((_SCHEDULE + 64) * LANES, np.uint32)
    state = np.zeros(8 * LANES, np.uint32)
    message = np.full(LANES, -1, np.int64)
    block = np.zeros(LANES, np.int64)
    extra = 0 if prefix < 0 else 1
    following = 0
    busy = 0
    for lane in range(LANES):
        if following < count:
            message[lane] = following
            following += 1
            busy += 1
            for part in range(8):
                state[part * LANES + lane] = _H[part]
    while busy:
        for lane in range(LANES):
            index = message[lane]
            if index >= 0:
                length = ends[index] - starts[index] + extra
                _load(s, lane, data, starts[index], length, prefix, block[lane])
        for at in range(8 * LANES):
            s[at] = state[at]
        _compress(s)
        for at in range(8 * LANES):
            state[at] = np.uint32(state[at] + s[at])
        for lane in range(LANES):
            index = message[lane]
            if index < 0:
                continue
            block[lane] += 1
            if block[lane] * 64 < ends[index] - starts[index] + extra + 9:
                continue
            for part in range(8):
                word = state[part * LANES + lane]
                out[index, part * 4] = np.uint8(word >> np.uint32(24))
                out[index, part * 4 + 1] = np.uint8((word >> np.uint32(16)) & np.uint32(255))
                out[index, part * 4 + 2] = np.uint8((word >> np.uint32(8)) & np.uint32(255))
                out[index, part * 4 + 3] = np.uint8(word & np.uint32(255))
                state[part * LANES + lane] = _H[part]
            block[lane] = 0
            if following < count:
                message[lane] = following
                following += 1
            else:
                message[lane] = -1
                busy -= 1


def hash_slices(data: Bytes, starts: Numbers, ends: Numbers, prefix: int = NO_PREFIX) -> Bytes:
    """SHA-256 of each data[start:end], after one byte `prefix` where it is given: (n, 32) bytes."""
    out = np.empty((len(starts), 32), dtype=np.uint8)
    _hash_slices(data, starts, ends, prefix, out)
    return out


def hash_pairs(nodes: Bytes) -> Bytes:
    """RFC 6962 inner nodes over an even number of nodes, (2n, 32) bytes: (n, 32) bytes."""
    pairs = len(nodes) // 2
    starts = np.arange(pairs, dtype=np.int64) * 64
    return hash_slices(nodes.reshape(-1), starts, starts + 64, prefix=1)
