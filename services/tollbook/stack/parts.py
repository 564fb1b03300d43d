"""What a part of the stack is: a process that is kept running, or a step that is done once.

Only the shapes, and the order that `needs` gives them. What the parts are is the catalogue's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tollbook.stack.errors import Unusable
from tollbook.stack.processes import Trace

Probe = Callable[[], Awaitable[None]]  # returns when the part answers, raises when it does not


@dataclass(frozen=True)
class Account:
    """A system user to run as, when the caller is root and the program refuses to be."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Process:
    """A program that runs until it is stopped, and is started again when it ends by itself.

    `prepare` runs before every start and must stand being repeated. `probe` asks the part itself.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    prepare: Callable[[], Awaitable[None]] | None
    probe: Probe
    address: str
    also: str = ""  # another address, for people
    needs: tuple[str, ...] = ()  # must be ready before this one is started
    uses: tuple[str, ...] = ()  # talked to while it runs, waited for by the part itself
    brings: tuple[str, ...] = ()  # what makes it useful, when it is asked for by name
    folder: Path | None = None
    trace: Trace | None = None
    account: Callable[[], Account] | None = None  # asked for when the part is started
    stop_signal: int = 15
    start_timeout_s: float = 60
    stop_timeout_s: float = 15


@dataclass(frozen=True)
class Step:
    """Something done once each time the stack starts; `action` says in a few words what it did."""

    name: str
    action: Callable[[], Awaitable[str]]
    needs: tuple[str, ...] = ()
    timeout_s: float = 120


Part = Process | Step


@dataclass(frozen=True)
class Catalogue:
    """All parts of one stack, every need listed before what needs it."""

    parts: tuple[Part, ...]
    given: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The parts' names, in order."""
        return [part.name for part in self.parts]

    def select(self, wanted: Sequence[str]) -> list[Part]:
        """The parts asked for by name with all they need and bring; all parts when none is named.

        A part that the user brought may be named too: there is nothing to start for it. Raises
        Unusable for a name that is no part.
        """
        if not wanted:
            return list(self.parts)
        by_name = {part.name: part for part in self.parts}
        chosen: set[str] = set()
        todo = [name for name in wanted if name not in self.given]
        while todo:
            name = todo.pop()
            if name in chosen:
                continue
            part = by_name.get(name)
            if part is None:
                raise Unusable(
                    f"there is no part named {name!r}; the parts are {', '.join(by_name)}"
                )
            chosen.add(name)
            todo += part.needs
            todo += (*part.uses, *part.brings) if isinstance(part, Process) else ()
        return [part for part in self.parts if part.name in chosen]


def _leans_on(part: Part) -> tuple[str, ...]:
    return (*part.needs, *part.uses) if isinstance(part, Process) else part.needs


def stop_waves(parts: Iterable[Part]) -> list[list[Part]]:
    """Groups to stop one after the other: a part is stopped before anything it needs or uses."""
    left = {part.name: part for part in parts}
    waves: list[list[Part]] = []
    while left:
        needed = {other for part in left.values() for other in _leans_on(part)}
        wave = [part for name, part in left.items() if name not in needed]
        if not wave:
            raise Unusable(f"the parts {', '.join(left)} need each other in a circle")
        waves.append(wave)
        for part in wave:
            del left[part.name]
    return waves
