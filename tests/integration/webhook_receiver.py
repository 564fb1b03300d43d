"""Who is told by webhook, in tests: a real HTTP server that answers as a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Receiver:
    """A webhook's end: answers what `status` says of the n-th call, and keeps what came."""

    server: ThreadingHTTPServer
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    status: Callable[[int], int] = lambda _: 204
    arrived: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver while it is used."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.got.append(({name.lower(): text for name, text in self.headers.items()}, body))
            made.arrived.set()
            status = made.status(len(made.got))
            self.send_response(status)
            if status == 307:
                self.send_header("location", made.url)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Keeps the tests' output clean."""

    made = Receiver(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()
