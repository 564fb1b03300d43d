"""Where this machine keeps what several checkouts share: the installer, the broker's jars, models.

Owns the rule for the cache's place and the one way of putting a folder into it: whole, by a rename,
so that two checkouts which fill it at the same moment cannot see half of anything. Standard library
only: set-up runs it before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_home() -> Path:
    """$TOLLBOOK_CACHE, else $XDG_CACHE_HOME/tollbook, else ~/.cache/tollbook. Need not exist."""
    given = os.environ.get("TOLLBOOK_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "tollbook"


def cached_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """The cache's folder `name`, which `fill` makes if it is not there yet.

    `fill` gets an empty folder beside its final place and raises if it cannot fill it; then nothing
    is kept. A name must change with the content (carry its hash): what is there is never refilled.
    When two processes fill the same name, one wins and both use the winner's.
    """
    final = cache_home() / name
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        fill(fresh)
        fresh.chmod(0o755)
        try:
            os.rename(fresh, final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return final
