"""Follows the keys of the signer, from those given to the auditor to the newest of the control log.

A record of a new key counts by the old key's signature on it, so it may be read
before the log that it stands in is verified; that the log holds it is verified
with all its other entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from audit import balances
from audit.findings import Finding
from audit.keys import Keys, Opened
from audit.layout import Export
from kernel import leaf as leaves
from kernel.keychain import KeyChain, Rotation, follow
from kernel.leaf import LeafError
from kernel.note import NoteError, VerifierKey, parse_checkpoint, split_note
from kernel.placement import CONTROL_LOG
from ledger.domain.rotation import rotation_of


class Followed(NamedTuple):
    """The keys that are trusted after all, and the chain of each log's name."""

    keys: Keys
    chains: Mapping[str, KeyChain]


def follow_keys(export: Export, keys: Keys) -> Followed:
    """Extend the auditor's keys by those that the control log leads to from them."""
    rotations = list(_rotations(export))
    chains: dict[str, KeyChain] = {}
    for name, given in keys.items():
        chain = KeyChain(name.rpartition("/")[0], {key.public for key in given})
        follow(chain, rotations)
        chains[name] = chain
    return Followed({name: chain.keys(name) for name, chain in chains.items()}, chains)


def _rotations(export: Export) -> Iterator[tuple[int, Rotation]]:
    files = export.log(CONTROL_LOG)
    try:
        text, _ = split_note(files.checkpoint() or b"")
        size = parse_checkpoint(text).size
    except NoteError:
        return
    for position, raw in balances.entries_of(files, size, 0, size):
        try:
            rotation = rotation_of(leaves.decode(raw))
        except LeafError:
            continue
        if rotation is not None:
            yield position, rotation


def check(log: str, opened: Opened, chains: Mapping[str, KeyChain]) -> tuple[Finding | None, str]:
    """(what is wrong with who signed a log's checkpoint, what is only worth a note)."""
    if opened.checkpoint is None or opened.key is None:
        return None, ""
    retired_at = chains[opened.key.name].retired.get(opened.key.public)
    if retired_at is None:
        return None, ""
    key_id = opened.key.key_id.hex()
    if log == CONTROL_LOG and opened.checkpoint.size > retired_at:
        what = (
            f"it is signed by the key {key_id} alone, which position {retired_at} of the log,"
            " before its end, retired"
        )
        return Finding(f"{log} checkpoint", what), ""
    return None, f"{log}: its checkpoint is signed by a key ({key_id}) that was retired since"


def notes(chains: Mapping[str, KeyChain]) -> list[str]:
    """What is worth telling of the control log's chain."""
    told: list[str] = []
    for name, chain in chains.items():
        if name.endswith(f"/{CONTROL_LOG}"):
            told += [
                f"the signer's key {VerifierKey(name, public).key_id.hex()} was retired at"
                f" {CONTROL_LOG} position {position}, by a record that it signed"
                for public, position in chain.retired.items()
            ]
    return told
