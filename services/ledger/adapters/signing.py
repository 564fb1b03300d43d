"""The signer: signs a log's head only if it extends what was signed before.

Owns the memory file: the last signed size and root of each log, kept outside
the database and on disk before the signature leaves the process. So whoever
changes the database, its administrator included, cannot have a second history
signed: a log that is shorter than the memory, or whose tree does not contain
the remembered one, is refused, loudly, until a person has looked. Nor does it
sign with a key that the control log has retired (kernel/keychain.py).
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from kernel import leaf as leaf_format
from kernel import merkle
from kernel.keychain import KeyChain
from kernel.leaf import LeafError
from kernel.note import Checkpoint, SignerKey, sign_checkpoint
from kernel.placement import CONTROL_LOG
from ledger.adapters.cosigning import Cosigners
from ledger.adapters.keys import origin_of, write_private
from ledger.adapters.leaves import LeafReader
from ledger.adapters.nodes import NodeReader
from ledger.adapters.store import BrokenLogError
from ledger.domain.rotation import rotation_of

log = structlog.get_logger()

_FORMAT: Final = 1
_CONTROL_STEP: Final = 10_000


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

    def all(self) -> dict[str, Signed]:
        """What was signed last, by origin."""
        return dict(self._signed)

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


class OtherOriginError(Exception):
    """The database's logs were signed under another name."""


async def refuse_other_origin(db: Any, origin: str) -> None:
    """One log has one name for ever; a second one beside it would be a second history.

    `origin`: TOLLBOOK_ORIGIN. Errors: OtherOriginError.
    """
    row = await db.fetchrow(
        "SELECT name, note FROM checkpoint JOIN log_head USING (log_id)"
        " ORDER BY log_id, checkpoint.size DESC LIMIT 1"
    )
    if row is None:
        return
    signed = row["note"].split(b"\n", 1)[0].decode()
    if signed != origin_of(origin, row["name"]):
        known = signed.removesuffix(f"/{row['name']}")
        raise OtherOriginError(
            f"the logs of this database are signed as {known}, and TOLLBOOK_ORIGIN is {origin}: set"
            f" TOLLBOOK_ORIGIN to {known} and bring the signer's key and memory of then"
            " (TOLLBOOK_SIGNER_KEY, signer/signed.json), or use another database"
        )


class HeadToSign(NamedTuple):
    """A log's head as the database shows it."""

    log_id: int
    name: str
    size: int
    root: bytes


class Round(NamedTuple):
    """What came of one look at all logs."""

    signed: int
    """Logs whose new checkpoint is where readers look."""
    refused: list[str]
    """What is wrong with logs that are no extension of what was signed."""
    waiting: list[str]
    """Checkpoints that not enough witnesses have cosigned."""


class LogSigner:
    """Signs the heads of all logs, over one connection."""

    def __init__(
        self,
        db: Any,
        key: SignerKey,
        origin: str,
        memory: Memory,
        leaves: LeafReader,
        cosigners: Cosigners | None = None,
    ) -> None:
        """`leaves` reads over the same connection, and in the archive."""
        self._db = db
        self._leaves = leaves
        self._key = key
        self._origin = origin
        self._memory = memory
        self._cosigners = cosigners
        self._chain = KeyChain(origin, {key.verifier.public})
        self._control_read = 0
        # Proofs for several witnesses are asked for at once; the connection does one thing.
        self._reading = asyncio.Lock()

    async def sign_grown(self) -> Round:
        """Sign each log that grew."""
        heads = [
            HeadToSign(*row)
            for row in await self._db.fetch(
                "SELECT log_id, name, size, root FROM log_head ORDER BY log_id"
            )
        ]
        refused: list[str] = []
        grown: dict[str, tuple[HeadToSign, Signed, Signed]] = {}
        try:
            await self._refuse_retired_key(heads)
        except (ForkError, BrokenLogError) as error:
            return Round(0, [str(error)], [])
        for head in heads:
            origin = origin_of(self._origin, head.name)
            try:
                if await self._check(head, origin):
                    last = self._memory.last(origin)
                    grown[origin] = (head, Signed(head.size, head.root), last)
            except (ForkError, BrokenLogError, KeyError) as error:
                refused.append(str(error))
        if not grown:
            return Round(0, refused, [])
        # First the memory, then the signature: a crash between the two costs a checkpoint,
        # the other order could cost the proof that there is one history.
        self._memory.remember({origin: signed for origin, (_, signed, _) in grown.items()})
        published = await asyncio.gather(
            *(self._publish(origin, *parts) for origin, parts in grown.items())
        )
        waiting = [problem for problem in published if problem]
        return Round(len(grown) - len(waiting), refused, waiting)

    async def _refuse_retired_key(self, heads: list[HeadToSign]) -> None:
        """Read on in the control log, for records that retire our key. Errors: ForkError."""
        control = next((head for head in heads if head.name == CONTROL_LOG), None)
        while control is not None and self._control_read < control.size:
            start = self._control_read
            end = min(control.size, start + _CONTROL_STEP)
            leaves = await self._leaves.leaves(control.log_id, start, end)
            for position, data in enumerate(leaves, start):
                try:
                    rotation = rotation_of(leaf_format.decode(data))
                except LeafError as error:
                    raise BrokenLogError(
                        f"log {CONTROL_LOG} position {position}: {error}"
                    ) from None
                if rotation is not None:
                    self._chain.take(position, rotation)
            self._control_read = end
        retired_at = self._chain.retired.get(self._key.verifier.public)
        if retired_at is not None:
            raise ForkError(
                f"the signer's key was retired by position {retired_at} of log {CONTROL_LOG}:"
                " put the new key in its place (TOLLBOOK_SIGNER_KEY)"
            )

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

    async def _publish(self, origin: str, head: HeadToSign, signed: Signed, last: Signed) -> str:
        """Sign, have it cosigned, and put it where readers look; gives why not, or nothing."""
        checkpoint = Checkpoint(origin, signed.size, signed.root)
        note = sign_checkpoint(checkpoint, self._key.named(origin))
        if self._cosigners is not None:

            async def prove(old_size: int) -> list[bytes]:
                async with self._reading:
                    return await NodeReader(self._db).run(
                        head.log_id,
                        lambda read: merkle.consistency_proof(old_size, signed.size, read),
                    )

            note, problem = await self._cosigners.cosign(note, checkpoint, last.size, prove)
            if problem:
                return f"log {head.name} at size {signed.size}: {problem}"
        async with self._reading:
            await self._db.execute(
                "INSERT INTO checkpoint (log_id, size, root, note) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (log_id, size) DO NOTHING",
                head.log_id,
                signed.size,
                signed.root,
                note,
            )
        return ""
