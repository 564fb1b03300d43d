"""A line between a client and a server that can be slowed, held in either direction, and cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

_PIECE: Final = 64 * 1024


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    asked_bytes: int = 0
    """Sent to the server since its last answer."""


class Line:
    """What passes, and whether. Bytes that are held when the line is cut are lost."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._connections: set[_Connection] = set()
        self._requests = asyncio.Event()
        self._answers = asyncio.Event()
        self._hold_from_bytes = 0
        self.address = ""
        self.delay_s = 0.0
        """How long each piece of an answer is kept back."""
        self.refuse = False
        """Whether new connections are refused."""
        self.held = asyncio.Event()
        """An answer, or a request, is being held."""
        self.release()

    def release(self) -> None:
        """Everything passes."""
        self._requests.set()
        self._answers.set()
        self.held.clear()

    def hold_requests(self) -> None:
        """Nothing reaches the server."""
        self._requests.clear()

    def hold_answers(self, to_bytes: int) -> None:
        """Nobody hears what the server says to requests of at least so many bytes."""
        self._hold_from_bytes = to_bytes
        self._answers.clear()

    def cut(self) -> None:
        """All connections break; what comes next is connected anew."""
        for connection in list(self._connections):
            connection.client.transport.abort()
            connection.server.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, line: _Connection) -> None:
        while piece := await reader.read(_PIECE):
            if not self._requests.is_set():
                self.held.set()
                await self._requests.wait()
            line.asked_bytes += len(piece)
            line.server.write(piece)
            await line.server.drain()
        line.server.close()

    async def _answer(self, reader: asyncio.StreamReader, line: _Connection) -> None:
        while piece := await reader.read(_PIECE):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if not self._answers.is_set() and line.asked_bytes >= self._hold_from_bytes:
                self.held.set()
                await self._answers.wait()
            line.asked_bytes = 0
            line.client.write(piece)
            await line.client.drain()
        line.client.close()

    async def connected(
        self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        """Carry one connection until it ends."""
        try:
            if self.refuse:
                raise ConnectionRefusedError
            from_server, server = await asyncio.open_connection(self._host, self._port)
        except OSError:
            client.transport.abort()
            return
        line = _Connection(client, server)
        self._connections.add(line)
        carriers = [
            asyncio.create_task(self._ask(from_client, line)),
            asyncio.create_task(self._answer(from_server, line)),
        ]
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(*carriers)
        finally:
            for carrier in carriers:
                carrier.cancel()
            client.transport.abort()
            server.transport.abort()
            self._connections.discard(line)


@asynccontextmanager
async def line_to(target: str) -> AsyncIterator[Line]:
    """A line to HOST:PORT; clients connect to its `address`."""
    line = Line(target)
    listener = await asyncio.start_server(line.connected, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    line.address = f"{host}:{port}"
    try:
        yield line
    finally:
        listener.close()
        line.release()
        line.cut()
