"""What an event costs its log's owner, by how many identities the log knows already."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from bench import usage_load
from ledger.domain import columnar
from ledger.domain.batch import LogState
from ledger.domain.columns import Columns, of_records
from ledger.domain.identities import RUN_ENTRIES, IdentityIndex
from ledger.domain.tree import TreeBuilder

BATCH: Final = 8_192
BATCHES: Final = 40


def growth(sizes: Sequence[int] = (100_000, 1_000_000, 10_000_000)) -> dict[str, float]:
    """Microseconds of processor time that an event costs its owner, by identities known before.

    All that is done for an event but the database's part, whose cost does not depend on them:
    a batch is appended there, and nothing is looked up.
    """
    records = [
        (offset, 0, key, value)
        for offset, (key, value) in enumerate(usage_load.values(0, 1, BATCH * BATCHES, seed=3))
    ]
    parts = [of_records(records[at : at + BATCH]) for at in range(0, len(records), BATCH)]
    _owner_cost_us(10_000, parts)  # compiles what is not yet compiled
    return {f"with_{size}": _owner_cost_us(size, parts) for size in sizes}


def _owner_cost_us(known: int, parts: Sequence[Columns]) -> float:
    rng = np.random.default_rng(known)
    index = IdentityIndex()
    for at in range(0, known, RUN_ENTRIES):
        end = min(at + RUN_ENTRIES, known)
        fingerprints = rng.integers(0, 1 << 64, end - at, dtype=np.uint64)
        index.add(fingerprints, np.arange(at, end), end)
    state = LogState(TreeBuilder(), 0, index)
    costs: list[float] = []
    for number, columns in enumerate(parts, 1):
        begun = time.process_time()
        reading = columnar.read(columns)
        suspects = columnar.find_suspects(index, reading)
        columnar.plan(state, reading, suspects, {}, number * BATCH)
        costs.append(time.process_time() - begun)
    return round(statistics.median(costs) / BATCH * 1e6, 3)
