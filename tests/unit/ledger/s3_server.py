"""An S3-compatible server on a port of its own, with a bucket `books`, as its clients see it: HTTP.

moto's by default, which the environment has; $TOLLBOOK_S3_SERVER names a versitygw to use instead,
which keeps the objects on the disk and checks signatures as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
from tests.integration.free_port import free_port

from tollbook.stack.ports import HOST

BUCKET: Final = "books"
_ACCESS: Final = "access"
_SECRET: Final = "secret"
_REGION: Final = "us-east-1"
_WAIT_S: Final = 120.0


def _command(folder: Path, host: str, port: int) -> list[str]:
    gateway = os.environ.get("TOLLBOOK_S3_SERVER")
    if gateway is None:
        return [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    for name in ("meta", f"data/{BUCKET}"):
        (folder / name).mkdir(parents=True)
    command = [gateway, "--access", _ACCESS, "--secret", _SECRET, "--region", _REGION]
    command += ["--port", f"{host}:{port}", "posix", "--sidecar", str(folder / "meta")]
    return [*command, str(folder / "data")]


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run one for as long as the block; gives the settings that its clients need."""
    host, port = HOST, free_port()
    url = f"http://{host}:{port}"
    with (
        (folder / "s3.log").open("wb") as said,
        subprocess.Popen(
            _command(folder, host, port), stdout=said, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            deadline = time.monotonic() + _WAIT_S
            while True:
                assert process.poll() is None, (folder / "s3.log").read_text()
                assert time.monotonic() < deadline, "the server does not answer"
                try:
                    # Makes the bucket of a server that has none yet.
                    httpx.put(f"{url}/{BUCKET}", timeout=_WAIT_S)
                    break
                except httpx.ConnectError:
                    time.sleep(0.02)
            yield {
                "AWS_ENDPOINT_URL": url,
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": _ACCESS,
                "AWS_SECRET_ACCESS_KEY": _SECRET,
                "AWS_REGION": _REGION,
            }
        finally:
            process.terminate()
