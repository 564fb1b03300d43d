"""What rows, tiles and roots tell of where a log differs: the exact places first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from audit.findings import Finding
from audit.log_check import LogResult
from tollbook.checking.vouched import Anchor


def differing(
    head: Any, rows: Iterable[Finding], result: LogResult, anchors: Sequence[Anchor]
) -> list[Finding]:
    """Where a log differs from its tiles, its head and its anchors; `rows`: what its rows tell."""
    name, size = head["name"], head["size"]
    exact = [*rows]
    whole = None
    for finding in result.findings:
        if (finding.position, finding.end_position) == (0, size) and size > 1:
            whole = finding
        elif not any(
            finding.position is not None
            and other.position is not None
            and other.position <= finding.position < (other.end_position or other.position + 1)
            for other in exact
        ):
            exact.append(finding)
    agreed = 0
    for anchor in sorted(anchors):
        if anchor.size > size:
            continue
        if result.roots.get(anchor.size) == anchor.root:
            agreed = anchor.size
            continue
        if not any(_is_within(finding, agreed, anchor.size) for finding in exact):
            exact.append(
                Finding(
                    name,
                    f"the entries give another root at size {anchor.size} than {anchor.source}",
                    agreed,
                    anchor.size,
                )
            )
        whole = None
        break
    else:
        if whole is not None:
            exact.append(Finding(name, "the entries give another root than the head", agreed, size))
    if result.root != head["root"] and not exact:
        exact.append(
            Finding(
                name,
                f"the head's root is {head['root'].hex()}, the entries give {result.root.hex()}",
                agreed,
                size,
            )
        )
    return exact


def _is_within(finding: Finding, start: int, end: int) -> bool:
    return finding.position is not None and start <= finding.position < end
