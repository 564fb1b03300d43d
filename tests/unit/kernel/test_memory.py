"""That freed blocks are used again: pages that the system has to give are counted, not time."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

ROUNDS = 50
BLOCK_BYTES = 4 * 1024 * 1024
PAGES = BLOCK_BYTES // 4096

_CODE = f"""
import resource, sys
from kernel import memory
if sys.argv[1] == "kept":
    assert memory.keep_freed()
def round():
    blocks = [b"x" * {BLOCK_BYTES} for _ in range(3)]
round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(how: str) -> int:
    """Pages that the system gave a process while it took and freed blocks."""
    found = subprocess.run(
        [sys.executable, "-c", _CODE, how], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    return int(found.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a C library without mallopt")
def test_blocks_that_were_freed_are_taken_again() -> None:
    assert new_pages("kept") < PAGES
    assert new_pages("given back") > ROUNDS * PAGES
