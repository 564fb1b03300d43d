"""What shall run and what does: orders.json and stack.json, and nothing but their form.

The commands write orders, the supervisor alone writes the state; each is replaced whole. The
`serial` of the orders that the supervisor last took up stands in the state, so a command can wait
for its own.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tollbook.stack.files import write_whole
from tollbook.stack.processes import ProcessId

FORMAT = 1

# waiting: for what it needs.  starting: runs, does not answer yet.  ready: it answered, or is done.
# held: stopped on request.  failed: gave up; the next `up` tries again.  stopped: by `down`.
PartStatus = Literal["waiting", "starting", "ready", "held", "failed", "stopped"]


@dataclass
class PartState:
    """One part as the supervisor last saw it."""

    status: PartStatus = "waiting"
    detail: str = ""
    process: ProcessId | None = None
    address: str = ""
    starts: int = 0
    since_s: float = field(default_factory=time.time)  # Unix time of the last change of status


@dataclass(frozen=True)
class Orders:
    """What shall run. `only` empty means everything; a held part is stopped and stays so."""

    serial: int = 0
    only: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


@dataclass
class StackState:
    """The whole stack as the supervisor last saw it."""

    stack_id: str
    supervisor: ProcessId
    base_port: int
    serial: int = -1
    stopping: bool = False
    given: dict[str, str] = field(default_factory=dict)  # parts the user brought, by name
    versions: dict[str, str] = field(default_factory=dict)
    parts: dict[str, PartState] = field(default_factory=dict)

    def is_supervised(self) -> bool:
        """Whether the supervisor that wrote this still runs."""
        return self.supervisor.is_alive()


def _process(value: Any) -> ProcessId | None:
    return None if value is None else ProcessId(value["pid"], value["start_tick"])


def write_state(path: Path, state: StackState) -> None:
    """Writes the state, whole."""
    write_whole(path, json.dumps({"format": FORMAT, **asdict(state)}, indent=1) + "\n")


def read_state(path: Path) -> StackState | None:
    """The state, or None when there is none or it is not one of ours."""
    try:
        raw = json.loads(path.read_text())
        if raw.pop("format") != FORMAT:
            return None
        parts = {
            name: PartState(**{**part, "process": _process(part["process"])})
            for name, part in raw.pop("parts").items()
        }
        supervisor = _process(raw.pop("supervisor"))
        if supervisor is None:
            return None
        return StackState(**raw, supervisor=supervisor, parts=parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_orders(path: Path, orders: Orders) -> None:
    """Writes the orders, whole."""
    write_whole(path, json.dumps(asdict(orders)) + "\n")


def read_orders(path: Path) -> Orders:
    """The orders; the default ones when there are none or they cannot be read."""
    try:
        raw = json.loads(path.read_text())
        return Orders(raw["serial"], tuple(raw["only"]), tuple(raw["held"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Orders()
