"""Reads a log's source to the end before a row is written: a log only grows, and what was written
wrongly could not be taken back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kernel import leaf as leaf_format
from kernel.errors import FailedPrecondition
from kernel.leaf import LeafError
from kernel.merkle import EMPTY_ROOT, Frontier, leaf_hash
from kernel.note import Checkpoint
from kernel.placement import partition_of_log
from ledger.domain.admission import Admission
from ledger.domain.streams import StreamState
from tollbook.rebuilding.sources import Source


@dataclass
class Survey:
    """What a source holds: the producer streams after its last entry."""

    streams: dict[str, StreamState] = field(default_factory=dict)


async def survey(
    log: str, source: Source, checkpoint: Checkpoint, held_size: int, held_root: bytes
) -> Survey:
    """Check that a source gives the checkpoint's root, and goes on from what the database holds.

    Errors: FailedPrecondition, which says what differs.
    """
    frontier = Frontier()
    admission = Admission() if partition_of_log(log) is not None else None
    at_held = EMPTY_ROOT if held_size == 0 else b""
    async for entry in source.entries(checkpoint.size):
        position = frontier.size
        try:
            leaf = leaf_format.decode(entry.leaf)
        except LeafError as error:
            raise _differs(f"{log} position {position} is no leaf: {error}") from None
        if admission is not None:
            verdict = admission.admit_leaf(leaf)
            if (leaf.disposition, leaf.reason) != verdict:
                raise _differs(f"{log} position {position} is not what the rules make of it")
        frontier.append(leaf_hash(entry.leaf))
        if frontier.size == held_size:
            at_held = frontier.root()
    if frontier.size != checkpoint.size:
        raise _differs(
            f"the source has {frontier.size} entries of {log}, its checkpoint {checkpoint.size}"
        )
    if frontier.root() != checkpoint.root:
        raise _differs(
            f"the source gives {log} the root {frontier.root().hex()}, its checkpoint signs"
            f" {checkpoint.root.hex()}"
        )
    if at_held != held_root:
        raise _differs(
            f"the {held_size} entries of {log} in the database are not those that the checkpoint"
            " signs: nothing was written. If they may go, begin with an empty schema"
        )
    return Survey({} if admission is None else admission.streams)


def _differs(what: str) -> FailedPrecondition:
    return FailedPrecondition(what, reason="SOURCE_DIFFERS")
