"""Ports of a stack: one block, claimed whole, kept from start to start while it is free.

The block's first port is the claim itself: the supervisor listens on it for as long as it lives, so
the kernel lets exactly one stack have the block, and kill -9 gives it back. Blocks lie under the
range from which the kernel hands out ports to outgoing connections, so none of those can sit on a
port of ours while a part restarts.
"""

from __future__ import annotations

import socket
import time
import zlib
from collections.abc import Iterator
from typing import Final

from tollbook.stack.errors import Unusable

HOST = "127.0.0.1"
FIRST_PORT = 20_000
BLOCK_SIZE = 32
BLOCKS = 375
DYING_S: Final = 10.0
_POLL_S: Final = 0.05

# A name keeps its offset for ever: a stack that was made earlier finds its parts where they were.
OFFSETS = {
    "supervisor": 0,
    "kafka": 1,
    "kafka-controller": 2,
    "postgres": 3,
    "ledger-server": 4,
    "ledger-worker": 5,
    "ledger-signer": 6,
    "pricing-server": 7,
    "pricing-projector": 8,
    "inference": 9,
    "ledger-tiles": 10,
    "witness": 11,
    "inference-http": 12,
}


def port_of(base: int, name: str) -> int:
    """The port of a part in the block that begins at `base`."""
    return base + OFFSETS[name]


def address_of(base: int, name: str) -> str:
    """HOST:PORT of a part."""
    return f"{HOST}:{port_of(base, name)}"


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # As servers do: connections of an earlier run that the kernel still remembers do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of the loopback address."""
    try:
        _listen(port).close()
    except OSError:
        return False
    return True


def _candidates(stack_id: str, kept: int | None) -> Iterator[int]:
    """Blocks in the order to try: the one kept, then all from a place of the stack's own on."""
    if kept is not None:
        yield kept
    start = zlib.crc32(stack_id.encode())
    for step in range(BLOCKS):
        yield FIRST_PORT + (start + step) % BLOCKS * BLOCK_SIZE


def _claimed(base: int) -> socket.socket | None:
    """The listener that holds a block, or None when some port of it is taken."""
    try:
        listener = _listen(base)
    except OSError:
        return None
    if all(is_free(base + offset) for offset in OFFSETS.values() if offset):
        return listener
    listener.close()
    return None


def claim(stack_id: str, kept: int | None = None) -> tuple[int, socket.socket]:
    """Claims a free block: its first port, and the listener that holds it while it is open.

    `kept` is the block of the last run; it is taken again if it can be, and waited for while only
    its parts' ports are taken: the kernel lets go of a killed process's some time after it is gone.
    Raises Unusable when no block of the machine is free.
    """
    deadline = time.monotonic() + DYING_S
    for base in _candidates(stack_id, kept):
        listener = _claimed(base)
        while listener is None and base == kept and is_free(base) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            listener = _claimed(base)
        if listener is not None:
            return base, listener
    raise Unusable(
        f"no block of {BLOCK_SIZE} free ports between {FIRST_PORT} and "
        f"{FIRST_PORT + BLOCKS * BLOCK_SIZE} on {HOST}; stop something that listens there"
    )
