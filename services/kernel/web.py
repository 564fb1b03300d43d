"""The HTTP plumbing that services share: an ASGI application served until told to stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.flow_control import service_unavailable

from kernel import errors

_DRAIN_S: Final = 5
MAX_CONNECTIONS: Final = 1_000
App = Callable[[Any, Any, Any], Awaitable[None]]


class _Server(uvicorn.Server):
    """Leaves the signals to the process, which has more to stop than this server; tells when it
    listens.
    """

    def __init__(self, config: uvicorn.Config, listening: asyncio.Event) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and tell."""
        await super().startup(sockets)
        self._listening.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


async def serve(
    app: App,
    address: str,
    stopped: asyncio.Event,
    overloaded: App | None = None,
    listening: asyncio.Event | None = None,
) -> None:
    """Serve an ASGI application at HOST:PORT until `stopped`; then drain. `listening` is set from
    when on whoever connects is served.

    While there are more than MAX_CONNECTIONS, `overloaded` answers: a 503, in the service's
    own shape. Errors: Unavailable when the address cannot be listened on.
    """
    host, _, port = address.rpartition(":")

    async def bounded(scope: Any, receive: Any, send: Any) -> None:
        too_many = len(server.server_state.connections) > MAX_CONNECTIONS
        await (refuse if too_many else app)(scope, receive, send)

    refuse = overloaded or cast(App, service_unavailable)
    config = uvicorn.Config(
        bounded,
        host=host,
        port=int(port),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    server = _Server(config, listening or asyncio.Event())
    try:
        sockets = [config.bind_socket()]
    except SystemExit:
        raise errors.Unavailable(
            f"cannot listen on {address}: is another process there?", reason="ADDRESS_IN_USE"
        ) from None
    serving = asyncio.create_task(server.serve(sockets))
    waiting = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    finally:
        waiting.cancel()
        for listener in sockets:
            listener.close()
