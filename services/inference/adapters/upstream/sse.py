"""Server-sent events, as far as OpenAI's streams use them: `data:` lines, each an event.

Bounded, unlike a line reader: a server that never ends its line takes no memory.

Format: WHATWG HTML, server-sent events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

MAX_EVENT_BYTES: Final = 1 << 20
DONE: Final = b"[DONE]"


class NotAStream(Exception):
    """The bytes are no stream of events, or an event is longer than MAX_EVENT_BYTES."""


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event. Errors: NotAStream."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        while (end := held.find(b"\n")) >= 0:
            line = bytes(held[:end]).strip()
            del held[: end + 1]
            if line.startswith(b"data:"):
                yield line[5:].strip()
            elif line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                raise NotAStream(f"a line that is no event: {line[:80]!r}")
        if len(held) > MAX_EVENT_BYTES:
            raise NotAStream(f"an event of more than {MAX_EVENT_BYTES} bytes")
