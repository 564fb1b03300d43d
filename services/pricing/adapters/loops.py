"""Loading the compiled loops beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Final

from kernel import cycles
from pricing.domain import tally

_ONE: Final = threading.Lock()
"""Who loads: two at once would each do all of it."""


def _load(only_kept: bool) -> bool:
    """Whether they are loaded, and were not before."""
    with _ONE:
        if tally.is_ready():
            return False
        tally.prepare(only_kept)
        return tally.is_ready()


async def load_loops(only_kept: bool = False) -> None:
    """Load the compiled loops, in a thread that a stop need not wait for.

    `only_kept`: unless they would have to be compiled first, which takes ten seconds of a
    processor that others may want.
    """
    loaded: Future[bool] = Future()
    # From here on it cannot be cancelled: whoever waits for it may go, and it still ends well.
    loaded.set_running_or_notify_cancel()

    def load() -> None:
        try:
            loaded.set_result(_load(only_kept))
        except Exception as error:  # told to the one who waits for it
            loaded.set_exception(error)

    threading.Thread(target=load, daemon=True).start()
    if await asyncio.wrap_future(loaded):
        cycles.settle()
