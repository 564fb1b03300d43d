"""Processes by their true identity: finding a stack's, waiting for them, ending them.

A pid alone names nothing for long, so an identity is a pid and the kernel's start tick. A stack's
processes are found by the marker in their environment, by the working folder where a program wipes
its environment (PostgreSQL does), and by descent from those. Nothing here knows what the parts are.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARKER = "TOLLBOOK_STACK"
_POLL_S = 0.02


@dataclass(frozen=True)
class ProcessId:
    """One process for ever: `start_tick` is its start in clock ticks after boot."""

    pid: int
    start_tick: int

    def is_alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        return process_id(self.pid) == self

    def send(self, signal_number: int) -> bool:
        """Sends a signal unless it is gone; says whether it was there."""
        # The descriptor pins the process, so the pid cannot come to mean another one in between.
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive():
                return False
            signal.pidfd_send_signal(descriptor, signal_number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


def process_id(pid: int) -> ProcessId | None:
    """The identity of a running process, or None if there is none, or only its zombie."""
    stat = _stat(pid)
    return None if stat is None or stat.state in "ZX" else ProcessId(pid, stat.start_tick)


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    start_tick: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may itself hold spaces and parentheses: count from the last one.
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], parent=int(fields[1]), start_tick=int(fields[19]))


def _has_marker(pid: int, marker: bytes) -> bool:
    try:
        return marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


@dataclass(frozen=True)
class Trace:
    """How to know a program that wipes its environment: its name and the folder it works in.

    Both, because somebody's shell may stand in that folder too.
    """

    program: str
    folder: str

    def fits(self, pid: int) -> bool:
        """Whether a process is one of these."""
        try:
            folder = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
            program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        except OSError:
            return False
        return folder == self.folder and Path(program).name == self.program


def find_stack(stack_id: str | None, traces: Iterable[Trace] = ()) -> set[ProcessId]:
    """Every running process of a stack, and every descendant of one, except the caller.

    Without a `stack_id` only the `traces` are looked for.
    """
    marker = None if stack_id is None else f"{MARKER}={stack_id}".encode()
    wanted = tuple(traces)
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        stat = _stat(pid)
        if stat is None or stat.state in "ZX":
            continue
        parents[pid] = stat.parent
        marked = marker is not None and _has_marker(pid, marker)
        if marked or any(trace.fits(pid) for trace in wanted):
            found.add(pid)
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        found |= children
        grown = bool(children)
    found.discard(os.getpid())
    return {identity for pid in found if (identity := process_id(pid)) is not None}


def wait_gone(processes: Iterable[ProcessId], timeout_s: float) -> set[ProcessId]:
    """Waits until all are gone or the time is up; returns those that still run."""
    deadline = time.monotonic() + timeout_s
    left = {process for process in processes if process.is_alive()}
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        left = {process for process in left if process.is_alive()}
    return left


def end(processes: Iterable[ProcessId], grace_s: float) -> set[ProcessId]:
    """SIGTERM, a bounded wait, SIGKILL. Returns those that even so still run (none, normally)."""
    targets = set(processes)
    for process in targets:
        process.send(signal.SIGTERM)
        process.send(signal.SIGCONT)
    left = wait_gone(targets, grace_s)
    for process in left:
        process.send(signal.SIGKILL)
    return wait_gone(left, grace_s)
