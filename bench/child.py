"""A part of a bench in a process of its own, which prints its figures as its last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

_TIMEOUT_S: Final = 900


def last_line_of(module: str, *words: str, environment: Mapping[str, str] | None = None) -> Any:
    """Run `python -m MODULE WORD ...`. Errors: CalledProcessError, TimeoutExpired."""
    done = subprocess.run(
        (sys.executable, "-m", module, *words),
        stdout=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        text=True,
        timeout=_TIMEOUT_S,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])
