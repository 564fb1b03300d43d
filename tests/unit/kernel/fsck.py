"""Runs transparency-dev Tessera's fsck, an independent checker of C2SP tlog-tiles, where it is.

Looked for in $TOLLBOOK_FSCK, on PATH and in ~/go/bin. Where it is not there but Go is, it is
built once a machine, in a minute, and kept in the user's cache.

Its exit status says nothing: it leaves with 0 when the log is bad too, or stays
for ever, telling once a second which range is Invalid. So what it says is read.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "github.com/transparency-dev/tessera/cmd/fsck@v1.0.4"
MISSING = f"Tessera's fsck is not here: `go install {PACKAGE}`, or name it in TOLLBOOK_FSCK"
_BUILD_S = 240
_GOOD = "Successfully fsck'd"
_BAD = ("fsck failed", "Invalid")


class Verdict(NamedTuple):
    """What fsck made of a log, and all it said."""

    ok: bool
    refused: bool
    said: str


def find() -> str:
    """Path of the program, or skip the test and say why."""
    named = os.environ.get("TOLLBOOK_FSCK")
    if named:
        return named
    # Linux has a program of this name too, which checks disks.
    folders = [f for f in os.get_exec_path() if f not in ("/bin", "/usr/bin") and "sbin" not in f]
    folders.append(str(Path("~/go/bin").expanduser()))
    found = shutil.which("fsck", path=os.pathsep.join(folders)) or _built()
    if found is None:
        pytest.skip(MISSING)
    return found


@functools.cache
def _built() -> str | None:
    """Path of the program as Go builds it here; None where there is no Go, or it cannot."""
    go = shutil.which("go")
    if go is None:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "tollbook"
    program = cache / f"tessera-{PACKAGE.rpartition('@')[2]}" / "fsck"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            try:
                subprocess.run(
                    [go, "install", PACKAGE],
                    env={**os.environ, "GOBIN": folder},
                    capture_output=True,
                    timeout=_BUILD_S,
                    check=True,
                )
            except (subprocess.SubprocessError, OSError):
                return None
            program.parent.mkdir(exist_ok=True)
            # Whole or not at all, whoever else builds it at the same time.
            os.replace(Path(folder) / "fsck", program)
    return str(program)


def run(program: str, log: Path | str, key_file: Path, timeout_s: float = 240) -> Verdict:
    """Check the log in a directory or at an URL; ends fsck as soon as it has said its verdict."""
    url = log if isinstance(log, str) else f"file://{log}/"
    command = [program, "-ui=false", f"-storage_url={url}", f"-public_key={key_file}"]
    command += ["-v", "2"]
    said: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watchdog = threading.Timer(timeout_s, process.kill)
        watchdog.start()
        assert process.stdout is not None
        ok = refused = False
        for line in process.stdout:
            said.append(line)
            ok = ok or _GOOD in line
            refused = refused or any(word in line for word in _BAD)
            if refused:
                break
        process.kill()
        watchdog.cancel()
    return Verdict(ok and not refused, refused, "".join(said))
