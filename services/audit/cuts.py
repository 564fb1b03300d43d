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
    """The pins of a log that a cut adds to those of the cuts before it."""
    return [(pin.from_position, pin.control_size) for pin in part.pins]


def take_pins(known: list[Pin], part: LogCut) -> None:
    """Add a cut's pins of a log to those of the cuts before it, which it may tell again in part."""
    del known[part.earlier_pins :]
    known += pins_of(part)


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


class Statements(NamedTuple):
    """What is wrong with the cuts by themselves, and all pins at the last whole one."""

    findings: list[Finding]
    pins: dict[str, list[Pin]]


def check_statements(cuts: Sequence[CutAt]) -> Statements:
    """Check the cuts by themselves: order of sizes, and pins, which each cut adds to."""
    findings: list[Finding] = []
    known: dict[str, list[Pin]] = {}
    at_last: dict[str, list[Pin]] = {}
    # Up to these sizes all pins were said.
    said: dict[str, int] = {}
    before: CutAt | None = None
    for found in cuts:
        problems = _problems(found)
        if before is not None:
            problems += _problems_since(before, found)
        for part in found.cut.logs:
            if partition_of_log(part.log) is not None:
                pins = known.setdefault(part.log, [])
                changed = _add_pins(part, pins, said.get(part.log, 0), before)
                # What does not fit into a cut of pins comes with the next one.
                if pins or not found.cut.pins_only:
                    problems += _pin_problems(part, pins, _control_size(found))
                problems += changed
        findings += [Finding(CUT_LOG, what, found.position) for what in problems]
        if not found.cut.pins_only:
            said = {part.log: part.size for part in found.cut.logs}
            at_last = {
                part.log: [pin for pin in known.get(part.log, []) if pin[0] < part.size]
                for part in found.cut.logs
            }
        before = found
    return Statements(findings, at_last)


def _control_size(found: CutAt) -> int | None:
    control = found.logs.get(CONTROL_LOG)
    return None if control is None else control.size


def _add_pins(part: LogCut, known: list[Pin], since: int, before: CutAt | None) -> list[str]:
    """Add a cut's pins of a log to those that the cuts before it have.

    `since`: up to this position an earlier cut said that there are no others.
    """
    place = "" if before is None else before.place
    pins = pins_of(part)
    if part.earlier_pins > len(known):
        problem = (
            f"{part.log} has {part.earlier_pins} pins in earlier cuts by it, they have {len(known)}"
        )
        known += pins
        return [problem]
    repeated = len(known) - part.earlier_pins
    again, new = pins[:repeated], pins[repeated:]
    changed = again != known[part.earlier_pins :] or any(pin[0] < since for pin in new)
    take_pins(known, part)
    if changed and before is not None:
        return [
            f"{part.log}'s pins below position {since} are not those of {place}: a pin never"
            " changes"
        ]
    return []


def _problems(found: CutAt) -> list[str]:
    problems: list[str] = []
    names = [part.log for part in found.cut.logs]
    if names != sorted(set(names)):
        problems.append("its logs are not in order of name, each once")
    if found.logs.get(CONTROL_LOG) is None:
        problems.append("it does not speak of the control log")
    problems += [
        f"it speaks of {part.log!r}, which is no log that a cut is made of"
        for part in found.cut.logs
        if partition_of_log(part.log) is None and part.log != CONTROL_LOG
    ]
    return problems


def _pin_problems(part: LogCut, pins: Sequence[Pin], control_size: int | None) -> list[str]:
    """What is wrong with the pins that a cut adds, after those it follows."""
    if part.size and (not pins or pins[0][0] != 0):
        return [f"{part.log} has no pin from position 0 on"]
    problems: list[str] = []
    first = min(part.earlier_pins, len(pins))
    for (start, known), (next_start, next_known) in pairwise(pins[max(0, first - 1) :]):
        if next_start <= start or next_known < known:
            problems.append(
                f"{part.log}'s pin from position {next_start} (control size {next_known}) does not"
                f" follow the one from {start} ({known})"
            )
    for start, known in pins[first:]:
        if start >= part.size:
            problems.append(
                f"{part.log}'s pin from position {start} is beyond its size {part.size}"
            )
        if control_size is not None and known > control_size:
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
        elif later.size < part.size:
            problems.append(
                f"{part.log} has {later.size} entries in it and {part.size} in {before.place}:"
                " a log never shrinks"
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
