"""The signer: signs a log's head only if it extends what was signed before.

Owns the memory file: the last signed size and root of each log, kept outside
the database and on disk before the signature leaves the process. So whoever
changes the database, its administrator included, cannot have a second history
signed: a log that is shorter than the memory, or whose tree does not contain
the remembered one, is refused, loudly, until a person has looked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from kernel import merkle
from kernel.note import Checkpoint, SignerKey, sign_checkpoint
from ledger.adapters.keys import origin_of, write_private
from ledger.adapters.nodes import NodeReader
from ledger.adapters.store import BrokenLogError

log = structlog.get_logger()

_FORMAT: Final = 1


class ForkError(RuntimeError):
    """The log is not an extension of what was signed."""


class MemoryFileError(RuntimeError):
    """The memory file cannot be used; without it nothing may be signed."""


class Signed(NamedTuple):
    """A tree that was signed."""

    size: int
    root: bytes


class Memory:
    """Last signed tree of each origin, in one small file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signed: dict[str, Signed] = {}
        if path.exists():
            self._signed = self._read()

    def _read(self) -> dict[str, Signed]:
        try:
            raw = json.loads(self._path.read_text())
            if raw["format"] != _FORMAT:
                raise ValueError(f"format {raw['format']} is not known")
            return {
                origin: Signed(int(item["size"]), bytes.fromhex(item["root"]))
                for origin, item in raw["logs"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MemoryFileError(
                f"the signer's memory {self._path} cannot be read ({error}): restore it from a"
                " backup. Without it the signer could sign a second history"
            ) from None

    def last(self, origin: str) -> Signed:
        """What was signed last; the empty tree when nothing was."""
        return self._signed.get(origin, Signed(0, merkle.EMPTY_ROOT))

    def knows(self, origin: str) -> bool:
        """Whether anything of this log was ever signed."""
        return origin in self._signed

    def remember(self, signed: dict[str, Signed]) -> None:
        """Keep newly signed trees: on disk when this returns. Errors: OSError."""
        merged = {**self._signed, **signed}
        logs = {
            origin: {"size": item.size, "root": item.root.hex()}
            for origin, item in sorted(merged.items())
        }
        write_private(self._path, json.dumps({"format": _FORMAT, "logs": logs}, indent=1) + "\n")
        self._signed = merged


class HeadToSign(NamedTuple):
    """A log's head as the database shows it."""

    log_id: int
    name: str
    size: int
    root: bytes


class LogSigner:
    """Signs the heads of all logs."""

    def __init__(self, db: Any, key: SignerKey, origin: str, memory: Memory) -> None:
        self._db = db
        self._key = key
        self._origin = origin
        self._memory = memory

    async def sign_grown(self) -> tuple[int, list[str]]:
        """Sign each log that grew.

        Gives how many were signed, and what is wrong with logs that were refused.
        """
        heads = [
            HeadToSign(*row)
            for row in await self._db.fetch(
                "SELECT log_id, name, size, root FROM log_head ORDER BY log_id"
            )
        ]
        refused: list[str] = []
        grown: dict[str, tuple[HeadToSign, Signed]] = {}
        for head in heads:
            origin = origin_of(self._origin, head.name)
            try:
                if await self._check(head, origin):
                    grown[origin] = (head, Signed(head.size, head.root))
            except (ForkError, BrokenLogError, KeyError) as error:
                refused.append(str(error))
        if grown:
            # First the memory, then the signature: a crash between the two costs a checkpoint,
            # the other order could cost the proof that there is one history.
            self._memory.remember({origin: signed for origin, (_, signed) in grown.items()})
            await self._publish(grown)
        return len(grown), refused

    async def _check(self, head: HeadToSign, origin: str) -> bool:
        """Whether there is something new to sign. Errors: ForkError."""
        last = self._memory.last(origin)
        if head.size < last.size:
            raise ForkError(
                f"log {head.name} SHRANK: {last.size} entries were signed, the database holds"
                f" {head.size}"
            )
        if head.size == last.size and self._memory.knows(origin):
            if head.root != last.root:
                raise ForkError(
                    f"log {head.name} FORKED: at size {head.size} the root {last.root.hex()} was"
                    f" signed, the database says {head.root.hex()}"
                )
            # Signed, but the checkpoint may have been lost on the way to the database.
            return not await self._db.fetchval(
                "SELECT EXISTS (SELECT FROM checkpoint WHERE log_id = $1 AND size = $2)",
                head.log_id,
                head.size,
            )
        await self._prove(head, last)
        return True

    async def _prove(self, head: HeadToSign, last: Signed) -> None:
        """Prove from the tiles that the head's tree contains the signed one.

        A reader of its own each time: a node kept from an earlier proof would
        hide a change made since.
        """
        nodes = NodeReader(self._db)
        proof, root = await nodes.run(
            head.log_id,
            lambda read: (
                merkle.consistency_proof(last.size, head.size, read),
                merkle.root_at(head.size, read),
            ),
        )
        if root != head.root:
            raise ForkError(
                f"log {head.name}: its tiles and last leaves give the root {root.hex()} at size"
                f" {head.size}, its head says {head.root.hex()}"
            )
        try:
            merkle.verify_consistency(last.size, head.size, last.root, root, proof)
        except merkle.ProofError as error:
            raise ForkError(f"log {head.name} FORKED: {error}") from None

    async def _publish(self, grown: dict[str, tuple[HeadToSign, Signed]]) -> None:
        rows = [
            (
                head.log_id,
                signed.size,
                signed.root,
                sign_checkpoint(
                    Checkpoint(origin, signed.size, signed.root), self._key.named(origin)
                ),
            )
            for origin, (head, signed) in grown.items()
        ]
        await self._db.executemany(
            "INSERT INTO checkpoint (log_id, size, root, note) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (log_id, size) DO NOTHING",
            rows,
        )
