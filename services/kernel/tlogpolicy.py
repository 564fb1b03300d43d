"""C2SP tlog-policy: which witnesses must have cosigned a checkpoint for it to count.

    witness NAME VKEY [URL]
    group NAME all|any|K MEMBER...
    quorum NAME|none

Lines `log VKEY [URL]` are read over: which logs there are, and their keys, is
known from elsewhere here (one key signs several logs under several names, which
a policy's log lines cannot say).

Source: c2sp.org/tlog-policy.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kernel.cosignature import CosignerKey
from kernel.note import NoteError

_NONE: Final = "none"
_MAX_BYTES: Final = 1024 * 1024
_MAX_LINES: Final = 1_000
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BLANK: Final = re.compile(r"[ \t]+")


class PolicyError(ValueError):
    """A text that is no policy; names the line."""


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness of a policy; `url` is its submission prefix, or empty."""

    name: str
    key: CosignerKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class _Group:
    threshold: int
    members: tuple[str, ...]


@dataclass
class Policy:
    """Witnesses, and the rule that says which of them are enough."""

    witnesses: dict[str, Witness] = field(default_factory=dict)
    quorum: str = _NONE
    _groups: dict[str, _Group] = field(default_factory=dict)

    @property
    def keys(self) -> list[CosignerKey]:
        """The keys of all witnesses."""
        return [witness.key for witness in self.witnesses.values()]

    def is_met(self, cosigners: Collection[CosignerKey]) -> bool:
        """Whether these cosigners are enough."""
        return self.quorum == _NONE or self._met(self.quorum, cosigners)

    def _met(self, name: str, cosigners: Collection[CosignerKey]) -> bool:
        witness = self.witnesses.get(name)
        if witness is not None:
            return witness.key in cosigners
        group = self._groups[name]
        met = sum(self._met(member, cosigners) for member in group.members)
        return met >= group.threshold


def parse(text: str) -> Policy:
    """Read a policy. Errors: PolicyError."""
    if len(text) > _MAX_BYTES or _FORBIDDEN.search(text):
        raise PolicyError("a policy is lines of at most 1 MiB without control characters")
    reader = _Reader()
    lines = text.split("\n")
    if len(lines) > _MAX_LINES:
        raise PolicyError(f"a policy has at most {_MAX_LINES} lines")
    for number, line in enumerate(lines, 1):
        words = [word for word in _BLANK.split(line) if word]
        if words and not words[0].startswith("#"):
            try:
                reader.take(words)
            except (PolicyError, NoteError) as error:
                raise PolicyError(f"line {number}: {error}") from None
    if not reader.has_quorum:
        raise PolicyError("a policy has one line `quorum NAME` or `quorum none`")
    return reader.policy


def read(path: Path) -> Policy:
    """Read a policy's file. Errors: PolicyError, which names the file."""
    try:
        # Octets beyond ASCII are names' own business; latin-1 keeps each as it is.
        return parse(path.read_bytes().decode("latin-1"))
    except OSError as error:
        raise PolicyError(f"cannot read {path}: {error.strerror}") from None
    except PolicyError as error:
        raise PolicyError(f"{path} {error}") from None


class _Reader:
    def __init__(self) -> None:
        self.policy = Policy()
        self.has_quorum = False
        self._members: set[str] = set()

    def take(self, words: list[str]) -> None:
        """Take in one line's words."""
        match words:
            case ["log", _] | ["log", _, _]:
                return
            case ["witness", name, vkey]:
                self._witness(name, vkey, "")
            case ["witness", name, vkey, url]:
                self._witness(name, vkey, url)
            case ["group", name, threshold, *members] if members:
                self._group(name, threshold, members)
            case ["quorum", name]:
                self._quorum(name)
            case _:
                raise PolicyError(f"not a line of a policy: {' '.join(words)[:80]!r}")

    def _define(self, name: str) -> None:
        if name == _NONE or self._is_known(name):
            raise PolicyError(f"the name {name!r} is taken")

    def _is_known(self, name: str) -> bool:
        return name in self.policy.witnesses or name in self.policy._groups

    def _witness(self, name: str, vkey: str, url: str) -> None:
        self._define(name)
        key = CosignerKey.parse(vkey)
        if any(key.public == other.public for other in self.policy.keys):
            raise PolicyError(f"witness {name!r} has the key of another")
        self.policy.witnesses[name] = Witness(name, key, url.rstrip("/"))

    def _group(self, name: str, threshold: str, members: list[str]) -> None:
        self._define(name)
        for member in members:
            if not self._is_known(member):
                raise PolicyError(f"{member!r} is not defined above")
            if member in self._members:
                raise PolicyError(f"{member!r} is a member already")
            self._members.add(member)
        match threshold:
            case "all":
                least = len(members)
            case "any":
                least = 1
            case number if number.isascii() and number.isdigit() and len(number) < 5:
                least = int(number)
            case other:
                raise PolicyError(f"a threshold is all, any or a number, not {other!r}")
        if not 1 <= least <= len(members):
            raise PolicyError(f"the threshold {least} does not fit {len(members)} members")
        self.policy._groups[name] = _Group(least, tuple(members))

    def _quorum(self, name: str) -> None:
        if self.has_quorum:
            raise PolicyError("there is a second quorum")
        if name != _NONE and not self._is_known(name):
            raise PolicyError(f"{name!r} is not defined above")
        self.policy.quorum = name
        self.has_quorum = True
