"""A process that has imported everything and forks engine cores when it is asked.

A core is forked from a process without threads (vllm_start), which the service is no longer
once it serves. So that an engine can be stopped and brought up again at run time, a copy of
the service is forked while it still is: it stays at one thread, holds no model, and shares
its memory with the service. Without it a new core would import torch and vLLM anew.

It is the fork server of Python's own multiprocessing (PEP 3143's cousin, `forkserver` start
method), but for how it comes to be: forked and not started as a new program. Three private
attributes of that module say where it is; `tests/integration/test_inference_sleep.py` fails
should they change.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any


def start(bind_to_parent: Callable[[int], None]) -> multiprocessing.context.ForkServerContext:
    """Fork it; gives the context whose processes come from it.

    `bind_to_parent` is called in it with the service's process id, and makes it die with
    the service. Call it once, before there is any thread, and after all imports.
    """
    resource_tracker.ensure_running()
    parent = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix="tollbook-cores-"))
    address = str(folder / "socket")
    alive_read, alive_write = os.pipe()
    with socket(AF_UNIX) as listener:
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen()
        pid = os.fork()
        if pid == 0:
            _run(listener.detach(), alive_read, alive_write, lambda: bind_to_parent(parent))
    os.close(alive_read)
    server: Any = forkserver._forkserver
    server._forkserver_address = address
    server._forkserver_alive_fd = alive_write
    server._forkserver_pid = pid
    return multiprocessing.get_context("forkserver")


def _run(listener: int, alive_read: int, alive_write: int, bind: Callable[[], None]) -> None:
    """In the fork: serve until the service is gone. Never returns."""
    status = 1
    try:
        bind()
        os.close(alive_write)
        forkserver.main(listener, alive_read, [])
    except SystemExit:
        status = 0
    finally:
        # Nothing of the service's own ending is for a copy of it.
        os._exit(status)


def stop() -> None:
    """End it, and every core that it forked and that is still there."""
    server: Any = forkserver._forkserver
    address = server._forkserver_address
    if address is None:
        return
    server._stop()
    with contextlib.suppress(OSError):
        Path(address).parent.rmdir()
