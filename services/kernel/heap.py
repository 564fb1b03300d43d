"""Spares a process the long pauses of Python's garbage collector.

A full collection looks at every object there is. What a service loads at its start (imports,
compiled loops, message classes) is some hundred thousand objects that stay for ever: looking at
them takes a tenth of a second, during which nothing is read, committed or answered.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """Collect once, and never again look at what is there by now. Call it when a process has
    loaded what it needs and has not begun its work.
    """
    gc.collect()
    gc.freeze()
