"""Append logs (control, cuts): which of the waiting requests become records, and where.

Pure: the idempotency keys that the log knows are given, answers come out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kernel import leaf as leaves
from kernel.errors import AlreadyExists, FailedPrecondition, TollbookError
from kernel.merkle import leaf_hash
from ledger.domain.admission import ACCEPTED
from ledger.domain.batch import Batch, chunks_of
from ledger.domain.tree import TreeBuilder


class Wanted(NamedTuple):
    """One request to append."""

    idempotency_key: str
    payload: bytes
    expected_size: int | None


class Placed(NamedTuple):
    """Where a record stands; `replayed` when it stood there before."""

    position: int
    replayed: bool


class KnownKey(NamedTuple):
    """What an idempotency key stands for."""

    position: int
    payload_digest: bytes


class NewKey(NamedTuple):
    """A key to be remembered with its record."""

    idempotency_key: str
    position: int
    payload_digest: bytes


class AppendPlan(NamedTuple):
    """Answers in the order of the requests, and what to write (None when nothing is new)."""

    answers: list[Placed | TollbookError]
    batch: Batch | None
    keys: list[NewKey]


def plan_append(
    log: str,
    tree: TreeBuilder,
    wanted: Sequence[Wanted],
    known: Mapping[str, KnownKey],
    now_ms: int,
) -> AppendPlan:
    """Work out the batch that these requests make, and move `tree` past it."""
    first = tree.size
    size = first
    here: dict[str, KnownKey] = {}
    answers: list[Placed | TollbookError] = []
    data: list[bytes] = []
    asides: list[tuple[int, bytes]] = []
    keys: list[NewKey] = []
    for request in wanted:
        key, payload, expected_size = request
        digest = hashlib.sha256(payload).digest()
        before = known.get(key) or here.get(key)
        if before is not None:
            answers.append(
                Placed(before.position, replayed=True)
                if before.payload_digest == digest
                else AlreadyExists(
                    f"the idempotency key {key!r} stands for another payload, at position"
                    f" {before.position} of log {log!r}: use a new key for a new record",
                    reason="IDEMPOTENCY_KEY_TAKEN",
                    metadata={"log": log, "position": str(before.position)},
                )
            )
            continue
        if expected_size is not None and expected_size != size:
            answers.append(
                FailedPrecondition(
                    f"log {log!r} has {size} entries, not {expected_size}: read what was added"
                    " and decide again",
                    reason="SIZE_MOVED",
                    metadata={"log": log, "size": str(size)},
                )
            )
            continue
        leaf = leaves.encode(ACCEPTED, 0, size, now_ms, key.encode(), payload)
        if leaves.decode(leaf).aside:
            asides.append((size, payload))
        data.append(leaf)
        keys.append(NewKey(key, size, digest))
        here[key] = KnownKey(size, digest)
        answers.append(Placed(size, replayed=False))
        size += 1
    if not data:
        return AppendPlan(answers, None, [])
    tiles = tree.extend([leaf_hash(leaf) for leaf in data])
    root, frontier = tree.root_and_frontier()
    batch = Batch(
        first_position=first,
        first_offset=first,
        size=size,
        next_offset=size,
        root=root,
        frontier=frontier,
        chunks=chunks_of(first, data),
        tiles=tiles,
        counts=(len(data), 0, 0, 0),
        asides=asides,
    )
    return AppendPlan(answers, batch, keys)
