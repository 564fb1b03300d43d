"""What an audit finds: each difference with the place where it was met.

Owns the words of a finding and the limit on how many are kept; which things
are compared is the other modules' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

MAX_FINDINGS: Final = 100


class UnusableError(Exception):
    """Input that cannot be audited at all: says what is wrong and what to do."""


class Finding(NamedTuple):
    """One difference. `place` is a log's name or a file's; `position` is one of that log.

    `end_position` is the position after the last that may differ, where the
    place is known only as a range.
    """

    place: str
    what: str
    position: int | None = None
    end_position: int | None = None

    @property
    def where(self) -> str:
        """`usage-2 position 17`, `usage-2 positions 256 to 511`, or the place alone."""
        if self.position is None:
            return self.place
        if self.end_position is None or self.end_position == self.position + 1:
            return f"{self.place} position {self.position}"
        return f"{self.place} positions {self.position} to {self.end_position - 1}"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Findings:
    """Findings in order, at most MAX_FINDINGS of them; the rest is counted."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self.dropped = 0

    def add(self, finding: Finding) -> None:
        """Add one."""
        if len(self._kept) < MAX_FINDINGS:
            self._kept.append(finding)
        else:
            self.dropped += 1

    def extend(self, findings: Iterable[Finding]) -> None:
        """Add several."""
        for finding in findings:
            self.add(finding)

    def merge(self, other: Findings) -> None:
        """Add another's, those it dropped included."""
        self.extend(other)
        self.dropped += other.dropped

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept) + self.dropped
