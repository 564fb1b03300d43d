"""The parts' log files: the end of one, and a bound on how large each may grow."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LIMIT_BYTES = 16 * 1024 * 1024
_TAIL_BYTES = 16 * 1024
_LINE_LIMIT = 400


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log, as many as fit in its last 16 KiB; none when there is no log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines:]


def last_line(path: Path) -> str:
    """The last line that says something, cut to a bearable length; where to look when none does."""
    for line in reversed(tail(path, 50)):
        if line.strip():
            return line.strip()[:_LINE_LIMIT]
    return f"it said nothing; see {path}"


def bound(path: Path) -> None:
    """Keeps a log under the limit: a full one becomes NAME.log.1 and begins again.

    The writers hold the file open for appending, so it is copied and cut, not renamed; a line
    written between the two is lost, which a log can bear.
    """
    try:
        if path.stat().st_size < LIMIT_BYTES:
            return
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return
