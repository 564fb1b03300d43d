"""All that one log can be checked for alone: tree, tiles, admission, what stands aside.

A pure function of the log's files and its verified checkpoint, so that logs
can be checked in processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit.admitted import Accepted, AppendCheck, Counts, UsageCheck
from audit.findings import Finding, Findings
from audit.layout import Export
from audit.spill import KEPT_IN_MEMORY, SpilledBodies
from audit.tree import TileFiles, TreeCheck
from kernel.note import Checkpoint
from kernel.placement import partition_of_log


@dataclass
class LogResult:
    """What a log's check gives."""

    log: str
    size: int
    root: bytes
    """Root over the entries as they stand."""
    counts: Counts
    findings: Findings
    readable: int
    """Entries can be read at positions below this."""
    roots: dict[int, bytes] = field(default_factory=dict)
    """Root at each wanted size."""
    accepted: Accepted = field(default_factory=Accepted)
    notes: list[str] = field(default_factory=list)


def check_log(
    export_root: Path, log: str, checkpoint: Checkpoint, wanted_sizes: frozenset[int]
) -> LogResult:
    """Check one log of an export."""
    export = Export(export_root)
    return check_files(export.log(log), export.aside, checkpoint, wanted_sizes)


def check_files(
    files: TileFiles,
    aside: Callable[[bytes], bytes | None],
    checkpoint: Checkpoint,
    wanted_sizes: frozenset[int],
    look: Callable[[int, list[bytes]], None] = lambda first, entries: None,
) -> LogResult:
    """Check one log, wherever its files are; `look` is shown all entries, in order.

    Memory: one bundle, and for a usage log its identities.
    """
    log = files.log
    tree = TreeCheck(files, checkpoint, wanted_sizes)
    if partition_of_log(log) is None:
        append = AppendCheck(log, aside)
        for first, entries in tree.bundles():
            look(first, entries)
            append.take(first, entries)
        return _result(tree, checkpoint, append, [], [])
    bodies: MutableMapping[bytes, bytes] = {}
    scope: Any = nullcontext()
    if checkpoint.size > KEPT_IN_MEMORY:
        bodies = SpilledBodies()
        scope = closing(bodies)
    with scope:
        usage = UsageCheck(log, aside, bodies)
        for first, entries in tree.bundles():
            look(first, entries)
            usage.take(first, entries)
        lost, notes = usage.finish()
    result = _result(tree, checkpoint, usage, lost, notes)
    result.accepted = usage.accepted
    return result


def _result(
    tree: TreeCheck,
    checkpoint: Checkpoint,
    entries: AppendCheck | UsageCheck,
    lost: list[Finding],
    notes: list[str],
) -> LogResult:
    findings = tree.finish()
    # An altered entry is reported once: what the rules say of its other bytes adds nothing.
    altered = {found.position for found in findings if found.end_position is not None}
    findings.extend(found for found in entries.findings if found.position not in altered)
    findings.extend(lost)
    return LogResult(
        entries.log,
        checkpoint.size,
        tree.root,
        entries.counts,
        findings,
        tree.readable,
        tree.roots,
        notes=notes,
    )
