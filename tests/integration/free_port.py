"""Ports for processes that a test starts: told to them before they listen."""

from __future__ import annotations

import secrets
from typing import Final

from tollbook.stack.ports import FIRST_PORT, is_free

_FIRST: Final = 10_000
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and that was not given before.

    It lies under the stacks' blocks and the range that the kernel serves outgoing connections from,
    so nobody else comes to it in the seconds until a process has started and listens.
    """
    for _ in range(FIRST_PORT):
        port = _FIRST + secrets.randbelow(FIRST_PORT - _FIRST)
        if port not in _given and is_free(port):
            _given.add(port)
            return port
    raise RuntimeError(f"no port from {_FIRST} to {FIRST_PORT} is free")
