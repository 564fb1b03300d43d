"""Control and usage logs replayed under the pins, to every balance there is.

Owns walking the logs' entries in runs that share a pin and stop where a
statement was made (what was served, then the last cut). The money is the pure
fold of pricing.domain.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from audit.cuts import Pin
from audit.findings import Finding, Findings
from audit.layout import LogFiles, split_bundle
from kernel import leaf as leaves
from kernel import tiles
from kernel.leaf import LeafError
from kernel.money import MoneyError
from kernel.placement import CONTROL_LOG
from pricing.domain.control import MissingAsideError
from pricing.domain.replay import Replay

_RUN_LEAVES: Final = 16 * tiles.TILE_WIDTH
_FOREVER: Final = 1 << 62


class Run(NamedTuple):
    """Consecutive leaves under one pin."""

    first_position: int
    control_size: int
    leaves: list[bytes]


def entries_of(files: LogFiles, size: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(position, leaf) of a log's entries in [start, end); ends early where they cannot be read."""
    for index in range(start // tiles.TILE_WIDTH, -(-end // tiles.TILE_WIDTH)):
        first = index * tiles.TILE_WIDTH
        width = min(tiles.TILE_WIDTH, size - first)
        found, _ = split_bundle(files.bundle(index, width) or b"", width)
        for at, raw in enumerate(found):
            if start <= first + at < end:
                yield first + at, raw
        if len(found) < width:
            return


def runs(files: LogFiles, size: int, start: int, end: int, pins: Sequence[Pin]) -> Iterator[Run]:
    """The entries in [start, end) of a usage log as runs that share a pin."""
    starts = [pin[0] for pin in pins]
    data: list[bytes] = []
    first = start
    at = bisect_right(starts, start) - 1
    stop = starts[at + 1] if at + 1 < len(starts) else _FOREVER
    for position, raw in entries_of(files, size, start, end):
        if position == stop or len(data) == _RUN_LEAVES:
            if data:
                yield Run(first, pins[at][1], data)
            data, first = [], position
            if position == stop:
                at += 1
                stop = starts[at + 1] if at + 1 < len(starts) else _FOREVER
        data.append(raw)
    if data:
        yield Run(first, pins[at][1], data)


class Source(NamedTuple):
    """A log that can be replayed: its files, its size, and up to where its entries can be read."""

    files: LogFiles
    size: int
    readable: int


class Books:
    """All balances, moved forward from one set of positions to the next."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        pins: Mapping[str, Sequence[Pin]],
        aside: Callable[[bytes], bytes | None],
        replay: Replay | None = None,
    ) -> None:
        self.replay = replay if replay is not None else Replay()
        self._sources = sources
        self._pins = pins
        self._aside = aside

    def advance(self, positions: Mapping[str, int]) -> Findings:
        """Apply every log up to these positions. What stops it is a finding."""
        findings = Findings()
        findings.extend(self._control(positions.get(CONTROL_LOG, 0)))
        for log, position in positions.items():
            if log != CONTROL_LOG and not len(findings):
                findings.extend(self._usage(log, position))
        return findings

    def _problem(self, log: str, position: int) -> Finding | None:
        """Why a log cannot be replayed to a position, or None."""
        source = self._sources.get(log)
        if source is None:
            return Finding(log, "it is needed for the balances and is not in the export")
        if position > source.readable:
            return Finding(
                log,
                "balances cannot be recomputed: the entries cannot be read from here on",
                source.readable,
            )
        return None

    def _control(self, end: int) -> Iterator[Finding]:
        at = self.replay.projection.control.size
        if problem := self._problem(CONTROL_LOG, end):
            yield problem
            return
        source = self._sources[CONTROL_LOG]
        for position, raw in entries_of(source.files, source.size, at, end):
            try:
                self.replay.apply_control(position, raw, self._record_aside(raw))
            except MissingAsideError as error:
                yield Finding(CONTROL_LOG, str(error), position)
                return
            except MoneyError as error:
                yield Finding(CONTROL_LOG, f"it cannot be applied: {error}", position)
                return

    def _record_aside(self, raw: bytes) -> bytes:
        try:
            leaf = leaves.decode(raw)
            return (self._aside(leaves.aside_of(leaf.value)[0]) or b"") if leaf.aside else b""
        except LeafError:
            return b""

    def _usage(self, log: str, end: int) -> Iterator[Finding]:
        at = self.replay.sizes.get(log, 0)
        if end <= at:
            return
        if problem := self._problem(log, end):
            yield problem
            return
        pins = self._pins.get(log, ())
        if not pins or pins[0][0] > at:
            yield Finding(log, "no pin says by what was known it was rated", at)
            return
        source = self._sources[log]
        for run in runs(source.files, source.size, at, end, pins):
            if run.control_size > self.replay.projection.control.size:
                yield Finding(
                    log,
                    f"it is pinned to control size {run.control_size}, and only"
                    f" {self.replay.projection.control.size} of the control log are applied there",
                    run.first_position,
                )
                return
            try:
                self.replay.apply_usage(log, run.first_position, run.control_size, run.leaves)
            except MoneyError as error:
                yield Finding(
                    log,
                    f"they cannot be applied: {error}",
                    run.first_position,
                    run.first_position + len(run.leaves),
                )
                return

    def ignored(self) -> list[Finding]:
        """Accepted entries that count for nothing, because they cannot be applied."""
        return [Finding(entry.log, entry.why, entry.position) for entry in self.replay.ignored]
