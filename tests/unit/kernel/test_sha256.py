"""Many messages hashed side by side, beside hashlib."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.merkle import node_hash
from kernel.sha256 import NO_PREFIX, hash_pairs, hash_slices


def sha256(data: bytes, prefix: int) -> bytes:
    return hashlib.sha256((b"" if prefix == NO_PREFIX else bytes([prefix])) + data).digest()


@pytest.mark.parametrize("prefix", [NO_PREFIX, 0, 1])
def test_sha256_of_every_length_around_its_blocks(prefix: int) -> None:
    data = random.Random(1).randbytes(70_000)
    lengths = [*range(200), 1_000, 4_096, 65_535]
    starts = np.array([7 * index for index in range(len(lengths))], dtype=np.int64)
    ends = starts + np.array(lengths, dtype=np.int64)
    found = hash_slices(np.frombuffer(data, dtype=np.uint8), starts, ends, prefix)
    for row, start, end in zip(found, starts.tolist(), ends.tolist(), strict=True):
        assert row.tobytes() == sha256(data[start:end], prefix)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=400), max_size=50), st.sampled_from([NO_PREFIX, 0, 1]))
def test_sha256_of_any_messages_side_by_side(messages: list[bytes], prefix: int) -> None:
    ends = np.cumsum([len(message) for message in messages], dtype=np.int64)
    starts = ends - np.array([len(message) for message in messages], dtype=np.int64)
    data = np.frombuffer(b"".join(messages), dtype=np.uint8)
    found = hash_slices(data, starts, ends, prefix)
    assert [row.tobytes() for row in found] == [sha256(message, prefix) for message in messages]


def test_pairs_are_the_kernels_inner_nodes() -> None:
    nodes = [hashlib.sha256(bytes([number])).digest() for number in range(64)]
    rows = np.frombuffer(b"".join(nodes), dtype=np.uint8).reshape(-1, 32)
    assert [row.tobytes() for row in hash_pairs(rows)] == [
        node_hash(nodes[at], nodes[at + 1]) for at in range(0, 64, 2)
    ]
