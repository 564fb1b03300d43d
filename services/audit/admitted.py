"""Each record of a log admitted again, by the ledger's own pure rules, and counted.

Owns what can be checked of a leaf beyond its hash: its disposition, its
place (offset), and the record that stands aside.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Final

from audit.findings import Finding, Findings
from kernel import leaf as leaves
from kernel.leaf import Leaf, LeafError
from ledger.domain.admission import ACCEPTED, Admission
from tollbook.ledger.v1 import ledger_pb2 as ledger

_MAX_GAPS_TOLD: Final = 8


@dataclass
class Counts:
    """Entries of a log by disposition."""

    accepted: int = 0
    duplicate: int = 0
    conflict: int = 0
    rejected: int = 0
    other: int = 0

    def add(self, disposition: int) -> None:
        """Count one entry."""
        match disposition:
            case ledger.DISPOSITION_ACCEPTED:
                self.accepted += 1
            case ledger.DISPOSITION_DUPLICATE:
                self.duplicate += 1
            case ledger.DISPOSITION_CONFLICT:
                self.conflict += 1
            case ledger.DISPOSITION_REJECTED:
                self.rejected += 1
            case _:
                self.other += 1


@dataclass
class Accepted:
    """What was accepted, small enough to be kept for every log at once.

    Eight bytes of each identity and its position, in order of position.
    """

    fingerprints: array[int] = field(default_factory=lambda: array("Q"))
    positions: array[int] = field(default_factory=lambda: array("q"))


class _Bodies(MutableMapping[bytes, bytes]):
    """Body digests by identity, noting who comes when."""

    def __init__(self, bodies: MutableMapping[bytes, bytes]) -> None:
        self._bodies = bodies
        self.accepted = Accepted()
        self.position = 0

    def __getitem__(self, identity: bytes) -> bytes:
        return self._bodies[identity]

    def __setitem__(self, identity: bytes, digest: bytes) -> None:
        self._bodies[identity] = digest
        self.accepted.fingerprints.append(int.from_bytes(identity[:8], "little"))
        self.accepted.positions.append(self.position)

    def __delitem__(self, identity: bytes) -> None:
        raise TypeError("an identity never expires")

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._bodies)

    def __len__(self) -> int:
        return len(self._bodies)


class _LeafCheck:
    """What is checked of every log's leaves."""

    def __init__(self, log: str, aside: Callable[[bytes], bytes | None]) -> None:
        self.log = log
        self.counts = Counts()
        self.findings = Findings()
        self._aside = aside

    def _read(self, position: int, raw: bytes) -> Leaf | None:
        try:
            leaf = leaves.decode(raw)
        except LeafError as error:
            self.findings.add(Finding(self.log, f"no leaf: {error}", position))
            return None
        self.counts.add(leaf.disposition)
        if leaf.aside:
            self._check_aside(position, leaf)
        return leaf

    def _check_aside(self, position: int, leaf: Leaf) -> None:
        digest, length = leaves.aside_of(leaf.value)
        data = self._aside(digest)
        if data is None:
            what = f"its record of {length} bytes stands aside, and aside/{digest.hex()} is missing"
        elif len(data) != length or hashlib.sha256(data).digest() != digest:
            what = f"its record stands aside, and aside/{digest.hex()} holds other bytes"
        else:
            return
        self.findings.add(Finding(self.log, what, position))


class UsageCheck(_LeafCheck):
    """Admission of a usage log from its beginning on."""

    def __init__(
        self,
        log: str,
        aside: Callable[[bytes], bytes | None],
        bodies: MutableMapping[bytes, bytes],
    ) -> None:
        super().__init__(log, aside)
        self._bodies = _Bodies(bodies)
        self._admission = Admission(self._bodies)
        self._last_offset = -1

    @property
    def accepted(self) -> Accepted:
        """Identities of what was accepted, by the rules."""
        return self._bodies.accepted

    def take(self, first_position: int, data: list[bytes]) -> None:
        """Check the next entries."""
        for position, raw in enumerate(data, first_position):
            leaf = self._read(position, raw)
            if leaf is None:
                continue
            self._bodies.position = position
            verdict = self._admission.admit_leaf(leaf)
            if (leaf.disposition, leaf.reason) != verdict:
                self.findings.add(
                    Finding(
                        self.log,
                        f"it stands as {_words(leaf.disposition, leaf.reason)}; by the rules and"
                        f" the log before it, it is {_words(*verdict)}",
                        position,
                    )
                )
            if leaf.offset <= self._last_offset:
                self.findings.add(
                    Finding(
                        self.log,
                        f"its offset {leaf.offset} is not after {self._last_offset},"
                        " the one of the entry before",
                        position,
                    )
                )
            self._last_offset = leaf.offset

    def finish(self) -> tuple[list[Finding], list[str]]:
        """(proven losses, notes): numbers that are missing in closed and in open streams."""
        lost: list[Finding] = []
        notes: list[str] = []
        for stream_id, stream in self._admission.streams.items():
            if not stream.missing:
                continue
            shown = ", ".join(
                f"{first}" if end == first + 1 else f"{first} to {end - 1}"
                for first, end in stream.missing[:_MAX_GAPS_TOLD]
            )
            if len(stream.missing) > _MAX_GAPS_TOLD:
                shown += f" and {len(stream.missing) - _MAX_GAPS_TOLD} ranges more"
            if stream.closed_seq is None:
                notes.append(f"{self.log}: the open stream {stream_id!r} has not yet had {shown}")
            else:
                lost.append(
                    Finding(
                        self.log,
                        f"the stream {stream_id!r} was closed and lacks {shown}: records are lost",
                    )
                )
        return lost, notes


class AppendCheck(_LeafCheck):
    """Entries of a log whose one door is Append: all accepted, in place, no key twice."""

    def __init__(self, log: str, aside: Callable[[bytes], bytes | None]) -> None:
        super().__init__(log, aside)
        self._keys: dict[bytes, int] = {}

    def take(self, first_position: int, data: list[bytes]) -> None:
        """Check the next entries."""
        for position, raw in enumerate(data, first_position):
            leaf = self._read(position, raw)
            if leaf is None:
                continue
            if (leaf.disposition, leaf.reason) != (ACCEPTED, ledger.REASON_UNSPECIFIED):
                self._wrong(position, f"it stands as {_words(leaf.disposition, leaf.reason)}")
            if leaf.offset != position:
                self._wrong(position, f"it says that it stands at {leaf.offset}")
            before = self._keys.setdefault(hashlib.sha256(leaf.key).digest()[:16], position)
            if before != position:
                self._wrong(position, f"its idempotency key stands at position {before} too")

    def _wrong(self, position: int, what: str) -> None:
        self.findings.add(Finding(self.log, what, position))


def _words(disposition: int, reason: int) -> str:
    """`DUPLICATE (IDENTITY_REPEAT)`."""
    name = _name(ledger.Disposition, disposition, "DISPOSITION_")
    return f"{name} ({_name(ledger.Reason, reason, 'REASON_')})" if reason else name


def _name(enum: object, number: int, prefix: str) -> str:
    names: dict[int, str] = {value: name for name, value in enum.items()}  # type: ignore[attr-defined]
    return names[number].removeprefix(prefix) if number in names else f"#{number}"
