"""The cut log: what each cut says of all logs, held against the logs themselves.

A cut is a statement about the whole system at an instant: size, root and pins
of every log, the digest of all balances, conservation. All cuts are checked
for sizes, roots and pins; the balances of the last one are recomputed
(balances.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from google.protobuf.message import DecodeError

from audit.findings import Finding, UnusableError
from kernel import leaf as leaves
from kernel.leaf import LeafError
from kernel.placement import CONTROL_LOG, CUT_LOG, partition_of_log
from pricing.domain.rating import RATING_VERSION
from tollbook.pricing.v1.control_pb2 import Cut, LogCut


class CutAt(NamedTuple):
    """A cut and its position in the cut log."""

    position: int
    cut: Cut

    @property
    def logs(self) -> dict[str, LogCut]:
        """What it says of each log."""
        return {part.log: part for part in self.cut.logs}

    @property
    def place(self) -> str:
        """For findings."""
        return f"{CUT_LOG} position {self.position}"


Pin = tuple[int, int]
"""(from position, control size)"""


def pins_of(part: LogCut) -> list[Pin]:
    """A log's pins in a cut."""
    return [(pin.from_position, pin.control_size) for pin in part.pins]


def read_cut(position: int, raw: bytes, aside: Callable[[bytes], bytes | None]) -> CutAt | Finding:
    """Read one entry of the cut log."""
    try:
        leaf = leaves.decode(raw)
        value = leaf.value
        if leaf.aside:
            # That these bytes are the ones the leaf speaks of is checked with the leaf.
            value = aside(leaves.aside_of(value)[0]) or b""
        return CutAt(position, Cut.FromString(value))
    except (LeafError, DecodeError) as error:
        return Finding(CUT_LOG, f"no cut: {error}", position)


def check_version(last: CutAt) -> None:
    """Errors: UnusableError when the balances were made by rules that this auditor lacks."""
    if last.cut.rating_version != RATING_VERSION:
        raise UnusableError(
            f"the last cut was made by rating version {last.cut.rating_version}, this auditor"
            f" knows version {RATING_VERSION}: use the auditor of that version"
        )


def check_statements(cuts: Sequence[CutAt]) -> list[Finding]:
    """What is wrong with the cuts by themselves: order of sizes, and pins."""
    findings: list[Finding] = []
    for found in cuts:
        findings += [Finding(CUT_LOG, what, found.position) for what in _problems(found)]
    for before, after in pairwise(cuts):
        findings += [
            Finding(CUT_LOG, what, after.position) for what in _problems_since(before, after)
        ]
    return findings


def _problems(found: CutAt) -> list[str]:
    problems: list[str] = []
    names = [part.log for part in found.cut.logs]
    if names != sorted(set(names)):
        problems.append("its logs are not in order of name, each once")
    control = found.logs.get(CONTROL_LOG)
    if control is None:
        return [*problems, "it does not speak of the control log"]
    for part in found.cut.logs:
        if partition_of_log(part.log) is not None:
            problems += _pin_problems(part, control.size)
        elif part.log != CONTROL_LOG:
            problems.append(f"it speaks of {part.log!r}, which is no log that a cut is made of")
    return problems


def _pin_problems(part: LogCut, control_size: int) -> list[str]:
    pins = pins_of(part)
    if part.size and (not pins or pins[0][0] != 0):
        return [f"{part.log} has no pin from position 0 on"]
    problems: list[str] = []
    for (start, known), (next_start, next_known) in pairwise(pins):
        if next_start <= start or next_known < known:
            problems.append(
                f"{part.log}'s pin from position {next_start} (control size {next_known}) does not"
                f" follow the one from {start} ({known})"
            )
    for start, known in pins:
        if start >= part.size:
            problems.append(
                f"{part.log}'s pin from position {start} is beyond its size {part.size}"
            )
        if known > control_size:
            problems.append(
                f"{part.log}'s pin from position {start} says control size {known}; the control"
                f" log has {control_size}"
            )
    return problems


def _problems_since(before: CutAt, after: CutAt) -> list[str]:
    problems: list[str] = []
    now = after.logs
    for part in before.cut.logs:
        later = now.get(part.log)
        if later is None:
            problems.append(f"it does not speak of {part.log}, of which {before.place} does")
            continue
        if later.size < part.size:
            problems.append(
                f"{part.log} has {later.size} entries in it and {part.size} in {before.place}:"
                " a log never shrinks"
            )
            continue
        kept = [pin for pin in pins_of(later) if pin[0] < part.size]
        if kept != pins_of(part):
            problems.append(
                f"{part.log}'s pins below position {part.size} are not those of {before.place}:"
                " a pin never changes"
            )
    return problems


class LogSeen(NamedTuple):
    """A log as the auditor recomputed it."""

    size: int
    roots: Mapping[int, bytes]


def check_roots(cuts: Sequence[CutAt], logs: Mapping[str, LogSeen]) -> list[Finding]:
    """Hold every (size, root) of every cut against the recomputed trees.

    Names for each log the first stretch of positions that cannot be what an
    earlier cut spoke of.
    """
    findings: list[Finding] = []
    agreed: dict[str, int] = {}
    wrong: set[str] = set()
    for found in cuts:
        for part in found.cut.logs:
            if part.log in wrong:
                continue
            seen = logs.get(part.log)
            problem = _root_problem(found, part, seen, agreed.get(part.log, 0))
            if problem is None:
                agreed[part.log] = part.size
            else:
                wrong.add(part.log)
                findings.append(problem)
    return findings


def _root_problem(found: CutAt, part: LogCut, seen: LogSeen | None, agreed: int) -> Finding | None:
    if seen is None:
        return Finding(
            part.log, f"the cut at {found.place} speaks of it, and it is not in the export"
        )
    if part.size > seen.size:
        return Finding(
            part.log,
            f"the cut at {found.place} has {part.size} entries, its checkpoint {seen.size}",
        )
    if seen.roots.get(part.size) == part.root:
        return None
    if part.size <= agreed:
        # An earlier cut bears the entries out, so this one is wrong about them.
        return Finding(
            CUT_LOG,
            f"it has another root of {part.log} at size {part.size} than the entries give, and an"
            f" earlier cut agrees with the entries",
            found.position,
        )
    return Finding(
        part.log,
        f"the entries give another root at size {part.size} than the cut at {found.place}"
        + (f"; at size {agreed} an earlier cut agrees" if agreed else ""),
        agreed,
        part.size,
    )
