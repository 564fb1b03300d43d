"""What the ledger's database is held against, and what of it was said outside the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kernel.errors import FailedPrecondition
from kernel.note import VerifierKey
from kernel.tilebuilder import CHECKPOINT_PATH
from ledger.adapters.signing import Memory, MemoryFileError, Signed
from ledger.adapters.tile_store import PINS_PATH, TileStore, log_prefix


@dataclass
class Sources:
    """What the database is held against."""

    keys: Sequence[VerifierKey]
    memory: Path | None = None
    tiles: TileStore | None = None
    kafka: str = ""
    topic: str = ""
    segments: str = ""
    """Where sealed segments are, a directory or a URL; empty: there are none."""


class Said(NamedTuple):
    """What was said outside the database, read before it: the logs grow meanwhile."""

    remembered: Mapping[str, Signed]
    """By origin."""
    published: Mapping[str, bytes]
    """Checkpoints by log."""
    pins: Mapping[str, bytes]
    """Published pins by log."""


async def said_of(sources: Sources) -> Said:
    """Read what was said. Errors: FailedPrecondition, StoreUnusableError."""
    published: dict[str, bytes] = {}
    pins: dict[str, bytes] = {}
    if sources.tiles is not None:
        for log in {key.name.rpartition("/")[2] for key in sources.keys}:
            note = await sources.tiles.get(log_prefix(log) + CHECKPOINT_PATH)
            if note is not None:
                published[log] = note
            pins[log] = await sources.tiles.get(log_prefix(log) + PINS_PATH) or b""
    remembered: Mapping[str, Signed] = {}
    if sources.memory is not None:
        try:
            remembered = Memory(sources.memory).all()
        except MemoryFileError as error:
            raise FailedPrecondition(str(error), reason="MEMORY_UNREADABLE") from None
    return Said(remembered, published, pins)
