"""A buffer that silently did nothing: litellm#19163. The ledger's half is exhibit 12 beside it.

Here inference's sink is the spool. On a disk that takes no more, the real spool tells nobody
that a record is there, and says so to the process at once, which then is not ready and ends.
"""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.museum

# In a process of its own: the limit on the size of a file holds for all of a process.
FULL = """
import asyncio, resource, signal, sys
from pathlib import Path
from inference.adapters.spool import Limits, Spool
from inference.domain import records

async def main():
    spool = Spool.open(Path(sys.argv[1]), Limits(65536, 65536, 1 << 20))
    spool.start()
    told = []
    spool.append(records.Booted("p/first"), lambda: told.append("first"))
    await spool.durable()
    # From here on the kernel refuses to write, as a full disk or a dead one does.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    spool.append(records.Booted("p/second"), lambda: told.append("second"))
    error = await asyncio.wait_for(spool.failed, 10)
    print(told, error.errno, flush=True)

asyncio.run(main())
"""


async def test_a_sink_that_takes_nothing_is_known_at_once(tmp_path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", FULL, str(tmp_path / "spool")],
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1:] == [f"['first'] {errno.EFBIG}"], done.stderr[-2000:]
