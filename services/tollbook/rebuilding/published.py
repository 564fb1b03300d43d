"""What was published of a system's logs: names, signed checkpoints, pins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from audit.cuts import Pin, take_pins
from kernel import leaf as leaf_format
from kernel.errors import FailedPrecondition
from kernel.note import Checkpoint, NoteError, VerifierKey, open_checkpoint
from kernel.placement import CONTROL_LOG, CUT_LOG, partition_of_log
from kernel.tilebuilder import CHECKPOINT_PATH
from ledger.adapters.tile_store import PINS_PATH, TileStore, log_prefix, parse_pins
from tollbook.pricing.v1 import control_pb2
from tollbook.rebuilding.sources import TilesSource

FOREVER: Final = 1 << 62


class Published:
    """The published logs of a system, by the keys that may have signed them."""

    def __init__(self, tiles: TileStore, origin: str, keys: Sequence[VerifierKey]) -> None:
        self._tiles = tiles
        self._origin = origin
        self._keys = keys

    async def names(self) -> list[str]:
        """The logs that have a checkpoint, control first. Errors: FailedPrecondition."""
        names = {
            key.name.rpartition("/")[2]
            for key in self._keys
            if key.name.rpartition("/")[0] == self._origin
        }
        found = [
            name
            for name in sorted(names)
            if await self._tiles.get(log_prefix(name) + CHECKPOINT_PATH) is not None
        ]
        if not found:
            raise FailedPrecondition(
                f"{self._tiles.url} has no checkpoint of a log of {self._origin}",
                reason="NOTHING_PUBLISHED",
            )
        # Control first: it is what usage is pinned to.
        return sorted(found, key=lambda name: (name != CONTROL_LOG, name))

    async def checkpoint(self, name: str) -> tuple[Checkpoint, bytes]:
        """A log's checkpoint, and its signed text. Errors: FailedPrecondition."""
        note = await self._tiles.get(log_prefix(name) + CHECKPOINT_PATH) or b""
        return self._verified(name, note), note

    def _verified(self, name: str, note: bytes) -> Checkpoint:
        why = "no key of it was given"
        for key in self._keys:
            if key.name != f"{self._origin}/{name}":
                continue
            try:
                return open_checkpoint(note, key)
            except NoteError as error:
                why = str(error)
        raise FailedPrecondition(f"log {name}: {why}", reason="CHECKPOINT_NOT_SIGNED")

    async def pins(self, name: str, size: int) -> list[Pin]:
        """A usage log's pins: as published beside its tiles, else as the cuts have them."""
        if partition_of_log(name) is None:
            return []
        try:
            pins = parse_pins(await self._tiles.get(log_prefix(name) + PINS_PATH) or b"")
        except ValueError as error:
            raise FailedPrecondition(
                f"the pins of {name} cannot be read: {error}", reason="PINS_UNREADABLE"
            ) from None
        if not pins:
            pins = await self._pins_of_cuts(name)
        return [pin for pin in pins if pin[0] < size]

    async def _pins_of_cuts(self, name: str) -> list[Pin]:
        note = await self._tiles.get(log_prefix(CUT_LOG) + CHECKPOINT_PATH)
        if note is None:
            return []
        size = self._verified(CUT_LOG, note).size
        pins: list[Pin] = []
        end = 0
        async for entry in TilesSource(self._tiles, CUT_LOG).entries(size):
            leaf = leaf_format.decode(entry.leaf)
            cut = control_pb2.Cut.FromString(entry.aside or leaf.value)
            for part in cut.logs:
                if part.log == name:
                    take_pins(pins, part)
                    end = part.size
        # What no cut speaks of is pinned to all that is known now, as a worker would do.
        return [*pins, (end, FOREVER)] if pins else []
