"""What lies beside a log, against its entries: counts, records aside, keys, exceptions, pins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from audit.cuts import Pin
from audit.log_check import LogResult
from kernel.placement import CUT_LOG, partition_of_log
from ledger.adapters.tile_store import parse_pins
from tollbook.checking.leaves import Leaves
from tollbook.checking.sources import Said
from tollbook.checking.verdict import Verdict


class Beside:
    """Checks the tables beside each log, the cut log before those of which it speaks."""

    def __init__(self, db: Any, said: Said, verdict: Verdict) -> None:
        self._db = db
        self._said = said
        self._verdict = verdict
        self._cut_pins: dict[str, list[Pin]] = {}

    async def check(self, head: Any, leaves: Leaves, result: LogResult) -> None:
        """Check what lies beside one log."""
        name, log_id = head["name"], head["log_id"]
        if name == CUT_LOG:
            # Its number is before those of the usage logs, of which it speaks.
            self._cut_pins = leaves.pins
        counted = result.counts
        counts = (counted.accepted, counted.duplicate, counted.conflict, counted.rejected)
        told = (head["accepted"], head["duplicate"], head["conflict"], head["rejected"])
        if counts != told and result.readable == result.size:
            self._verdict.found(
                name, f"the head counts {told} by disposition, the entries are {counts}"
            )
        await self._asides(name, log_id, leaves, result)
        await self._keys_of_appends(name, log_id, leaves, result)
        rows = await self._db.fetch(
            "SELECT position, disposition, reason FROM log_exception WHERE log_id = $1", log_id
        )
        for position, *_ in sorted(leaves.exceptions ^ {tuple(row) for row in rows}):
            if position < result.readable:
                self._verdict.found(name, "log_exception does not say what the entry is", position)
        await self._pins(name, head)

    async def _asides(self, name: str, log_id: int, leaves: Leaves, result: LogResult) -> None:
        rows = await self._db.fetch(
            "SELECT position, sha256(value) AS digest, length(value) AS length FROM log_aside"
            " WHERE log_id = $1",
            log_id,
        )
        there = {row["position"]: (row["digest"], row["length"]) for row in rows}
        for position in sorted(there.keys() | leaves.asides.keys()):
            if position >= result.readable or there.get(position) == leaves.asides.get(position):
                continue
            if position not in there:
                what = "its record stands aside, and log_aside lacks it"
            elif position not in leaves.asides:
                what = "log_aside holds a record that the entry does not speak of"
            else:
                what = "log_aside holds another record than the entry speaks of"
            self._verdict.found(name, what, position)

    async def _keys_of_appends(
        self, name: str, log_id: int, leaves: Leaves, result: LogResult
    ) -> None:
        rows = await self._db.fetch(
            "SELECT idempotency_key, position, payload_digest FROM append_key WHERE log_id = $1",
            log_id,
        )
        there = {row[0]: (row[1], row[2]) for row in rows}
        for key in sorted(there.keys() | leaves.keys.keys()):
            own, entry = there.get(key), leaves.keys.get(key)
            if own == entry:
                continue
            position = (entry or own or (0, b""))[0]
            if position >= result.readable:
                continue
            if own is None:
                what = "no idempotency key leads to it: it did not come through Append"
            elif entry is None:
                what = f"the idempotency key {key!r} leads to it, and it is another's entry"
            else:
                what = f"append_key says other things of the key {key!r} than the entry"
            self._verdict.found(name, what, position)

    async def _pins(self, name: str, head: Any) -> None:
        if partition_of_log(name) is None:
            return
        rows = await self._db.fetch(
            "SELECT from_position, control_size FROM log_pin WHERE log_id = $1"
            " ORDER BY from_position",
            head["log_id"],
        )
        pins = [(row[0], row[1]) for row in rows]
        if head["size"] and (not pins or pins[0][0] != 0):
            self._verdict.found(name, "it has no pin from position 0 on")
        last = -1
        for position, control_size in pins:
            if position >= head["size"]:
                self._verdict.found(name, f"a pin is beyond the log's end {head['size']}", position)
            if control_size <= last and position:
                self._verdict.found(name, "its pin does not grow", position)
            last = control_size
        self._compare_pins(name, head["size"], pins, self._cut_pins.get(name, []), "the cut log")
        try:
            published = parse_pins(self._said.pins.get(name, b""))
        except ValueError:
            self._verdict.found(name, "its published pins cannot be read")
            return
        self._compare_pins(name, head["size"], pins, published, "what was published")

    def _compare_pins(
        self, name: str, size: int, pins: Sequence[Pin], told: Sequence[Pin], source: str
    ) -> None:
        """Pins never change, so what was told of them once is how they begin."""
        for number, pin in enumerate(told):
            if pin[0] < size and (number >= len(pins) or pins[number] != pin):
                self._verdict.found(name, f"its pin is not the one of {source}", pin[0])
                return
