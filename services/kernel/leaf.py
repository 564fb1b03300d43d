"""Leaf bytes: what is hashed into a log's tree, and all that an auditor gets.

A leaf is a pure function of the record and of the log before it: it holds no
clock of ours and no owner's name, so a log rebuilt from Kafka has the same
root. Layout, big-endian:

    version      u8    1: this layout and the admission rules of version 1
    flags        u8    bit 0: `value` stands aside, see below
    disposition  u8    tollbook.ledger.v1.Disposition
    reason       u8    tollbook.ledger.v1.Reason
    offset       i64   Kafka offset, or the position itself in an Append log
    timestamp_ms i64   the record's timestamp, milliseconds since the epoch
    key_length   u16
    key          bytes the Kafka key, or the Append idempotency key
    value        bytes the record as received, to the leaf's end

A tile's entry holds at most 65,535 bytes (C2SP tlog-tiles), so a larger value
is kept aside and the leaf holds its SHA-256 and its length (u64) instead.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

VERSION: Final = 1
MAX_LEAF_BYTES: Final = 65_535
MAX_KEY_BYTES: Final = 1_024
_ASIDE: Final = 1
_HEADER: Final = struct.Struct(">BBBBqqH")
HEADER_BYTES: Final = _HEADER.size
_ASIDE_BODY: Final = struct.Struct(">32sQ")


class LeafError(ValueError):
    """Bytes that are no leaf of a version this code knows."""


class Leaf(NamedTuple):
    """One decoded leaf; `value` is a digest and a length when `aside` is set."""

    disposition: int
    reason: int
    offset: int
    timestamp_ms: int
    key: bytes
    value: bytes
    aside: bool = False


def encode(
    disposition: int, reason: int, offset: int, timestamp_ms: int, key: bytes, value: bytes
) -> bytes:
    """Give the leaf bytes of a record; a value too large for a tile's entry goes aside.

    A key over MAX_KEY_BYTES is cut to that length: no key of ours comes near
    it, and a stranger's must not make the leaf unwritable.
    """
    key = key[:MAX_KEY_BYTES]
    if HEADER_BYTES + len(key) + len(value) > MAX_LEAF_BYTES:
        body = _ASIDE_BODY.pack(hashlib.sha256(value).digest(), len(value))
        return (
            _HEADER.pack(VERSION, _ASIDE, disposition, reason, offset, timestamp_ms, len(key))
            + key
            + body
        )
    return (
        _HEADER.pack(VERSION, 0, disposition, reason, offset, timestamp_ms, len(key)) + key + value
    )


def decode(data: bytes) -> Leaf:
    """Read leaf bytes. Errors: LeafError names what is wrong with them."""
    if len(data) < HEADER_BYTES:
        raise LeafError(f"a leaf has at least {HEADER_BYTES} bytes, this one has {len(data)}")
    if len(data) > MAX_LEAF_BYTES:
        raise LeafError(f"a leaf has at most {MAX_LEAF_BYTES} bytes, this one has {len(data)}")
    version, flags, disposition, reason, offset, timestamp_ms, key_length = _HEADER.unpack_from(
        data
    )
    if version != VERSION:
        raise LeafError(f"leaf version {version} is not known; this code reads version {VERSION}")
    if flags & ~_ASIDE:
        raise LeafError(f"leaf flags {flags:#04x} are not known")
    value_at = HEADER_BYTES + key_length
    if value_at > len(data):
        raise LeafError(f"the key's length {key_length} goes beyond the leaf's {len(data)} bytes")
    if flags:
        aside_of(data[value_at:])
    return Leaf(
        disposition,
        reason,
        offset,
        timestamp_ms,
        data[HEADER_BYTES:value_at],
        data[value_at:],
        bool(flags & _ASIDE),
    )


def aside_of(value: bytes) -> tuple[bytes, int]:
    """Split an aside leaf's value into (SHA-256, length in bytes) of what is kept.

    Errors: LeafError when it is not as long as these are.
    """
    if len(value) != _ASIDE_BODY.size:
        raise LeafError(
            f"an aside leaf's value has {_ASIDE_BODY.size} bytes, this one has {len(value)}"
        )
    digest, length = _ASIDE_BODY.unpack(value)
    return digest, length
