"""Who vouched for a log's trees, and of which size and root: its anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kernel import leaf as leaf_format
from kernel.keychain import KeyChain
from kernel.leaf import LeafError
from kernel.note import Checkpoint, NoteError, VerifierKey, open_checkpoint
from kernel.placement import CONTROL_LOG
from kernel.tiles import decode_bundle
from ledger.adapters.tile_store import log_prefix
from ledger.domain.rotation import rotation_of
from tollbook.checking.database_log import Published
from tollbook.checking.sources import Said, Sources
from tollbook.checking.verdict import Verdict


class Anchor(NamedTuple):
    """A tree that somebody vouched for: its size and root, and who."""

    size: int
    root: bytes
    source: str


class Vouched:
    """The signed checkpoints of the database, the signer's memory and what was published."""

    def __init__(self, db: Any, sources: Sources, said: Said, verdict: Verdict) -> None:
        self._db = db
        self._sources = sources
        self._said = said
        self._verdict = verdict
        self._keys: dict[str, list[VerifierKey]] = {}
        for key in sources.keys:
            self._keys.setdefault(key.name, []).append(key)

    async def follow_keys(self, heads: Sequence[Any]) -> None:
        """Extend the keys by those that the control log leads to."""
        rotations = []
        for head in heads:
            if head["name"] != CONTROL_LOG:
                continue
            rows = await self._db.fetch(
                "SELECT first_position, leaves FROM log_chunk WHERE log_id = $1"
                " AND position('\\xf201'::bytea in leaves) > 0 ORDER BY first_position",
                head["log_id"],
            )
            for first, data in rows:
                rotations += _rotations_in(first, data)
        for name, keys in list(self._keys.items()):
            chain = KeyChain(name.rpartition("/")[0], {key.public for key in keys})
            for position, rotation in rotations:
                chain.take(position, rotation)
            self._keys[name] = chain.keys(name)

    async def anchors(self, head: Any) -> list[Anchor]:
        """A log's anchors."""
        name = head["name"]
        origins = [key for key in self._keys if key.endswith(f"/{name}")]
        if not origins:
            self._verdict.notes.append(f"{name}: no verifier key of this log was given")
        anchors: list[Anchor] = []
        rows = await self._db.fetch(
            "SELECT size, root, note FROM checkpoint WHERE log_id = $1 ORDER BY size",
            head["log_id"],
        )
        for size, root, note in rows:
            opened = self._open(note, origins)
            if opened is None:
                if origins:
                    self._verdict.found(
                        f"{name} checkpoint {size}", "no key given signed it; it was altered"
                    )
                continue
            if (opened.size, opened.root) != (size, root):
                self._verdict.found(
                    f"{name} checkpoint {size}", "its row is not what its signed text says"
                )
            anchors.append(Anchor(opened.size, opened.root, "the signed checkpoint"))
        anchors += [
            Anchor(*self._said.remembered[origin], "the signer's memory")
            for origin in origins
            if origin in self._said.remembered
        ]
        published = self._published(name)
        if published is not None:
            anchors.append(published)
        return anchors

    def _open(self, note: bytes, origins: Sequence[str]) -> Checkpoint | None:
        for origin in origins:
            for key in self._keys[origin]:
                try:
                    return open_checkpoint(note, key)
                except NoteError:
                    continue
        return None

    def _published(self, name: str) -> Anchor | None:
        note = self._said.published.get(name)
        opened = None
        if note is not None:
            opened = self._open(note, [key for key in self._keys if key.endswith(f"/{name}")])
        if opened is None:
            return None
        return Anchor(opened.size, opened.root, "the published checkpoint")

    def published_tiles(self, name: str) -> Published | None:
        """A log's published tiles, where a key given signed their checkpoint."""
        store, anchor = self._sources.tiles, self._published(name)
        if store is None or anchor is None:
            return None
        return Published(anchor.size, lambda path: store.get(log_prefix(name) + path))


def _rotations_in(first: int, data: bytes) -> list[Any]:
    found = []
    try:
        for position, leaf in enumerate(decode_bundle(data), first):
            rotation = rotation_of(leaf_format.decode(leaf))
            if rotation is not None:
                found.append((position, rotation))
    except (ValueError, LeafError):
        return found
    return found
