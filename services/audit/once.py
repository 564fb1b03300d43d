"""One event, one entry, over all usage logs together.

Within a log admission sees a repeat. Between logs nothing does: an account's
events stand in one log only as long as producers place them so. Whatever was
accepted in two logs was charged twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from audit.admitted import Accepted
from audit.findings import Finding
from kernel import leaf as leaves
from kernel.leaf import LeafError
from ledger.domain.scan import scan


def accepted_twice(
    accepted: Mapping[str, Accepted], entry: Callable[[str, int], bytes]
) -> list[Finding]:
    """Accepted records that two logs hold. `entry` reads the leaf at (log, position).

    Memory: 24 bytes for each accepted record.
    """
    logs = list(accepted)
    if len(logs) < 2:
        return []
    fingerprints = np.concatenate(
        [np.frombuffer(accepted[log].fingerprints, dtype=np.uint64) for log in logs]
    )
    order = np.argsort(fingerprints, kind="stable")
    in_order = fingerprints[order]
    repeated = np.flatnonzero(in_order[1:] == in_order[:-1])
    starts = np.cumsum([0, *(len(accepted[log].positions) for log in logs)])

    def place(number: int) -> tuple[str, int]:
        at = int(np.searchsorted(starts, number, side="right")) - 1
        return logs[at], accepted[logs[at]].positions[number - int(starts[at])]

    findings: list[Finding] = []
    for at in repeated:
        first = place(int(order[at]))
        second = place(int(order[at + 1]))
        # Eight bytes may agree by chance; the identities themselves decide.
        if first[0] != second[0] and _identity(entry(*first)) == _identity(entry(*second)):
            findings.append(
                Finding(
                    second[0],
                    f"the same event stands accepted at {first[0]} position {first[1]} too:"
                    " it is charged twice",
                    second[1],
                )
            )
    return findings


def _identity(raw: bytes) -> Any:
    try:
        return scan(leaves.decode(raw).value).identity
    except LeafError:
        return raw
