"""Long work on the event loop, in parts: between them others go on."""

from __future__ import annotations

import asyncio


async def let_others() -> None:
    """Let another task take an answer that has come, and ask its next question."""
    # One turn of the loop reads the answer, the next one runs who waits for it.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
