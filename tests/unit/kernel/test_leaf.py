"""Leaf bytes: as the docstring draws them, back and forth, and never a guess at rubbish."""

from __future__ import annotations

import contextlib
import hashlib
import struct

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kernel import leaf, tiles
from kernel.leaf import LeafError

U8 = st.integers(0, 255)
I64 = st.integers(-(2**63), 2**63 - 1)


def test_the_layout_is_fixed_for_ever() -> None:
    data = leaf.encode(2, 9, 7, 1_700_000_000_000, b"key", b"value")
    assert data.hex() == (
        "01"  # version
        "00"  # flags
        "02"  # disposition
        "09"  # reason
        "0000000000000007"  # offset
        "0000018bcfe56800"  # timestamp_ms
        "0003"  # key length
        "6b6579"  # key
        "76616c7565"  # value
    )


@given(U8, U8, I64, I64, st.binary(max_size=1024), st.binary(max_size=3000))
def test_a_leaf_gives_its_record_back(
    disposition: int, reason: int, offset: int, timestamp_ms: int, key: bytes, value: bytes
) -> None:
    data = leaf.encode(disposition, reason, offset, timestamp_ms, key, value)
    assert leaf.decode(data) == (disposition, reason, offset, timestamp_ms, key, value, False)
    assert len(data) == leaf.HEADER_BYTES + len(key) + len(value)


@pytest.mark.parametrize("key", [b"", b"k" * 1024])
def test_the_largest_value_that_stands_in_the_leaf_and_the_smallest_aside(key: bytes) -> None:
    room = leaf.MAX_LEAF_BYTES - leaf.HEADER_BYTES - len(key)
    whole = leaf.encode(1, 0, 0, 0, key, b"v" * room)
    assert len(whole) == leaf.MAX_LEAF_BYTES == tiles.MAX_ENTRY_BYTES
    assert leaf.decode(whole).value == b"v" * room
    value = b"v" * (room + 1)
    aside = leaf.decode(leaf.encode(1, 0, 0, 0, key, value))
    assert aside.aside
    assert aside.key == key
    assert leaf.aside_of(aside.value) == (hashlib.sha256(value).digest(), room + 1)


def test_a_key_of_any_length_leaves_the_leaf_writable() -> None:
    data = leaf.encode(4, 1, 0, 0, b"k" * 70_000, b"v" * 70_000)
    assert len(data) <= leaf.MAX_LEAF_BYTES
    assert leaf.decode(data).key == b"k" * leaf.MAX_KEY_BYTES


def test_two_values_that_look_alike_have_two_leaves() -> None:
    """The bytes of an aside body, sent as a record, do not pass for one."""
    large = b"v" * 70_000
    aside = leaf.encode(1, 0, 0, 0, b"", large)
    forged = leaf.encode(1, 0, 0, 0, b"", leaf.decode(aside).value)
    assert forged != aside
    assert not leaf.decode(forged).aside


@given(st.binary(max_size=80))
def test_rubbish_is_a_leaf_of_the_same_bytes_or_an_error(data: bytes) -> None:
    try:
        read = leaf.decode(data)
    except LeafError:
        return
    assert not read.aside or len(read.value) == 40
    again = struct.pack(">BBBBqqH", 1, read.aside, *read[:4], len(read.key)) + read.key + read.value
    assert again == data


@given(st.integers(0, 30), U8)
def test_every_changed_header_is_another_leaf_or_an_error(at: int, byte: int) -> None:
    data = leaf.encode(1, 0, 5, 6, b"key", b"value")
    at %= leaf.HEADER_BYTES
    assume(data[at] != byte)
    changed = data[:at] + bytes([byte]) + data[at + 1 :]
    with contextlib.suppress(LeafError):
        assert leaf.decode(changed) != leaf.decode(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "at least"),
        (b"\x01" * 21, "at least"),
        (b"\x02" + bytes(21), "version 2"),
        (b"\x00" + bytes(21), "version 0"),
        (b"\x01\x02" + bytes(20), "flags 0x02"),
        (b"\x01" + bytes(20) + b"\x01", "key's length 1"),
        (b"\x01\x01" + bytes(20), "40 bytes"),
        (b"\x01\x00" + bytes(20) + bytes(65_536), "at most 65535"),
    ],
)
def test_an_error_says_what_is_wrong(data: bytes, what: str) -> None:
    with pytest.raises(LeafError, match=what):
        leaf.decode(data)


def test_an_aside_body_has_one_length() -> None:
    with pytest.raises(LeafError, match="40 bytes"):
        leaf.aside_of(b"x" * 39)
