"""Ports for processes that a test starts: told to them before they listen."""

from __future__ import annotations

import secrets
import socket
from typing import Final

from tollbook.stack.ports import FIRST_PORT, is_free

_FIRST: Final = 10_000
_claims: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody listens on, and that no process on the machine was given before.

    It lies under the stacks' blocks and the range that the kernel serves outgoing connections from,
    so nobody else comes to it in the seconds until a process has started and listens.
    """
    for _ in range(FIRST_PORT):
        port = _FIRST + secrets.randbelow(FIRST_PORT - _FIRST)
        if _claim(port):
            if is_free(port):
                return port
            _claims.pop().close()
    raise RuntimeError(f"no port from {_FIRST} to {FIRST_PORT} is free")


def _claim(port: int) -> bool:
    """Take a name that the kernel gives to one socket, and gives back when this process ends."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0tollbook-test-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True
