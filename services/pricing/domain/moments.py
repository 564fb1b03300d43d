"""Stretches of time in which nothing that selects a price changes: segments, by number.

Three things cut time: the edges of cards, the months that accounts are billed
by, and the clocks of cards (months of their own, and time windows by the hour).
A segment is a stretch between two edges together with what the clocks show.
Numbers are given as segments are met, so they mean
something within one catalogue alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pricing.domain import hours
from pricing.domain.card import Card, TimeWindow
from pricing.domain.months import EDGES_US

_BLOCK_S: Final = 900
_MAX_REMEMBERED: Final = 200_000

Shown = tuple[tuple[str, tuple[frozenset[str], ...]], ...]
"""What the clocks show: of each zone the month, and of each set of windows those that hold."""


class _Clock(NamedTuple):
    """A zone that some card goes by."""

    zone: str
    has_months: bool
    windows: tuple[tuple[TimeWindow, ...], ...]


class Moments:
    """The segments of a catalogue's cards."""

    def __init__(self, cards: Iterable[Card]) -> None:
        edges: set[int] = set(EDGES_US)
        months: dict[str, bool] = {}
        windows: dict[str, dict[tuple[TimeWindow, ...], None]] = {}
        for card in cards:
            edges.add(card.effective_from_us)
            if card.effective_to_us is not None:
                edges.add(card.effective_to_us)
            by_month = needs_months(card)
            if by_month or card.windows:
                months[card.timezone] = months.get(card.timezone, False) or by_month
                of_zone = windows.setdefault(card.timezone, {})
                if card.windows:
                    of_zone[card.windows] = None
        self.edges_us: tuple[int, ...] = tuple(sorted(edges))
        self._edges = np.array(self.edges_us, dtype=np.int64)
        self._clocks = tuple(
            _Clock(zone, months[zone], tuple(windows[zone])) for zone in sorted(months)
        )
        self._by_quarter = all(
            edge_s % _BLOCK_S == 0
            for clock in self._clocks
            for group in clock.windows
            for window in group
            for edge_s in (window.start_s, window.end_s)
        )
        self._numbers: dict[tuple[int, Shown], int] = {}
        self._samples_us: list[int] = []
        self._seconds: dict[int, Shown] = {}
        self._blocks: dict[int, Shown | None] = {}

    def segment(self, at_us: int) -> int:
        """Number of the segment that an instant is in."""
        edge = bisect_right(self.edges_us, at_us)
        if not self._clocks:
            # An instant of a stretch between edges: its first.
            return edge
        second = at_us // 1_000_000
        # A quarter of an hour is looked at once, as a rule; one with a change in it, by the second.
        shown = self._of_block(second // _BLOCK_S) or self._shown(second)
        return self._number(edge, shown, at_us)

    def sample_us(self, segment: int) -> int:
        """An instant of a segment; what holds for one holds for all of it."""
        if self._clocks:
            return self._samples_us[segment]
        if segment:
            return self.edges_us[segment - 1]
        return self.edges_us[0] - 1 if self.edges_us else 0

    def segments(self, times_us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Segment of each of many instants."""
        if not len(times_us):
            return np.empty(0, dtype=np.int64)
        # Of the many edges there are, a run meets few.
        bounds = np.array([times_us.min(), times_us.max()])
        first, last = np.searchsorted(self._edges, bounds, side="right").tolist()
        edge: npt.NDArray[np.int64] = np.searchsorted(
            self._edges[first:last], times_us, side="right"
        ).astype(np.int64)
        edge += first
        if not self._clocks:
            return edge
        seconds = times_us // 1_000_000
        blocks, of_block = np.unique(seconds // _BLOCK_S, return_inverse=True)
        shown: list[Shown | None] = [self._of_block(block) for block in blocks.tolist()]
        if None in shown:
            # A change within the block: second by second.
            stamps, of_block = np.unique(seconds, return_inverse=True)
            shown = [self._shown(second) for second in stamps.tolist()]
        pairs = edge.astype(np.int64) * len(shown) + of_block
        firsts_of, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
        numbers = np.empty(len(firsts_of), dtype=np.int64)
        for index, (pair, at) in enumerate(zip(firsts_of.tolist(), first.tolist(), strict=True)):
            found = shown[pair % len(shown)]
            if found is None:
                raise AssertionError("a block that was not looked into")
            numbers[index] = self._number(pair // len(shown), found, int(times_us[at]))
        answer: npt.NDArray[np.int64] = numbers[inverse]
        return answer

    def _number(self, edge: int, shown: Shown, at_us: int) -> int:
        number = self._numbers.get((edge, shown))
        if number is None:
            number = self._numbers[edge, shown] = len(self._samples_us)
            self._samples_us.append(at_us)
        return number

    def _shown(self, second: int) -> Shown:
        found = self._seconds.get(second)
        if found is None:
            found = self._look(second)
            if len(self._seconds) >= _MAX_REMEMBERED:
                self._seconds.clear()
            self._seconds[second] = found
        return found

    def _look(self, second: int) -> Shown:
        answer = []
        for clock in self._clocks:
            local = hours.local_time(clock.zone, second * 1_000_000)
            answer.append(
                (
                    local.period if clock.has_months else "",
                    tuple(windows_at(group, local) for group in clock.windows),
                )
            )
        return tuple(answer)

    def _of_block(self, block: int) -> Shown | None:
        """What all clocks show all through a quarter of an hour; None where one may change."""
        if block not in self._blocks:
            first, last = block * _BLOCK_S, block * _BLOCK_S + _BLOCK_S - 1
            even = self._by_quarter
            for clock in self._clocks:
                before = hours.local_time(clock.zone, first * 1_000_000).utc_offset_s
                after = hours.local_time(clock.zone, last * 1_000_000).utc_offset_s
                even = even and before == after and before % _BLOCK_S == 0
            if len(self._blocks) >= _MAX_REMEMBERED:
                self._blocks.clear()
            self._blocks[block] = self._shown(first) if even else None
        return self._blocks[block]


def needs_months(card: Card) -> bool:
    """Whether a card's charges depend on the calendar month."""
    return card.commitment is not None or any(line.is_metered for line in card.lines)


def windows_at(windows: Iterable[TimeWindow], local: hours.LocalTime) -> frozenset[str]:
    """Names of the windows that hold a local time."""
    return frozenset(window.name for window in windows if hours.holds(window, local))
