"""A real file system that can be full. Where none may be mounted, the test is skipped."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(uid: int, mib: int) -> Iterator[Path]:
    """A file system of its own for a user, so small that it can be filled."""
    folder = Path(tempfile.mkdtemp(prefix="tollbook-disk-"))
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,uid={uid},mode=0700"]
    done = subprocess.run([*mounting, "tollbook", str(folder)], capture_output=True, check=False)
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"no file system may be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def enlarge(disk: Path, mib: int) -> None:
    """Give it space again."""
    subprocess.run(["mount", "-o", f"remount,size={mib}m", str(disk)], check=True)
