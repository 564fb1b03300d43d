"""What a log's entries say of what must stand beside it: records aside, keys, exceptions, pins."""

from __future__ import annotations

import hashlib

from google.protobuf.message import DecodeError

from audit.cuts import Pin, take_pins
from kernel import leaf as leaf_format
from kernel.leaf import LeafError
from kernel.placement import CUT_LOG, partition_of_log
from ledger.domain.admission import CONFLICT, REJECTED
from tollbook.checking.records import RecordCheck
from tollbook.pricing.v1 import control_pb2


class Leaves:
    """What the entries say of what must stand beside the log."""

    def __init__(self, log: str, records: RecordCheck | None) -> None:
        self._log = log
        self._is_usage = partition_of_log(log) is not None
        self._records = records
        self.pins: dict[str, list[Pin]] = {}
        """What cuts say, where this is the cut log."""
        self.asides: dict[int, tuple[bytes, int]] = {}
        self.keys: dict[str, tuple[int, bytes]] = {}
        self.exceptions: set[tuple[int, int, int]] = set()

    def look(self, first: int, entries: list[bytes]) -> None:
        """Take a bundle's entries in."""
        for position, data in enumerate(entries, first):
            try:
                leaf = leaf_format.decode(data)
                digest = hashlib.sha256(leaf.value).digest()
                if leaf.aside:
                    digest, length = leaf_format.aside_of(leaf.value)
                    self.asides[position] = (digest, length)
            except LeafError:
                continue
            if self._log == CUT_LOG and not leaf.aside:
                self._take_cut(leaf.value)
            if not self._is_usage:
                self.keys[leaf.key.decode("utf-8", "replace")] = (position, digest)
            elif leaf.disposition in (CONFLICT, REJECTED):
                self.exceptions.add((position, leaf.disposition, leaf.reason))
            if self._records is not None:
                self._records.look(position, leaf, data)

    def _take_cut(self, value: bytes) -> None:
        try:
            cut = control_pb2.Cut.FromString(value)
        except DecodeError:
            return
        for part in cut.logs:
            take_pins(self.pins.setdefault(part.log, []), part)
